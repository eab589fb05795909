import pytest
import torch
from toys import base_to_new, colours

from promptprism.backbones import load_backbone
from promptprism.causality.misalignment import OTHERS, accuracy_over_epochs, task_misalignment
from promptprism.errors import PromptPrismError
from promptprism.evaluation.suites import Cell
from promptprism.methods import make_settings

DATA = colours(classes=4, train=3)


def cell(method, seed=1, **settings):
    whole = make_settings(method, **settings).model_dump(mode="json")
    return Cell(protocol="base-to-new", method=method, settings=whole, data="colours", shots=3, seed=seed)


@pytest.mark.slow
def test_the_shipped_model_is_closest_to_the_full_description():
    found = task_misalignment(load_backbone("mini"), "mini/food", count=60)
    full = torch.tensor(found.cosine["full"])
    assert found.captions["full"].count(" ") > 8
    assert found.captions["object"][13:-1] not in found.captions["another scene"]
    for part in OTHERS:
        other = torch.tensor(found.cosine[part])
        assert len(other) == 60
        assert found.full_is_closer[part] == pytest.approx((full > other).double().mean().item())
        assert full.mean() > other.mean()
    assert 0.5 < found.full_is_closest <= min(found.full_is_closer.values())


def test_there_must_be_enough_scenes(tiny):
    with pytest.raises(
        PromptPrismError, match=r"cannot take 10000 scenes: 'mini/food' has [0-9]+ test scenes"
    ):
        task_misalignment(tiny, "mini/food", count=10_000)


@pytest.mark.slow
@pytest.mark.parametrize("class_offsets", [False, True])
@pytest.mark.parametrize("method", ["coop", "cdc"])
def test_looking_changes_nothing(tiny, method, class_offsets):
    settings = {"epochs": 3, "batch_size": 2, "lr": 0.01, "class_offsets": class_offsets} | (
        {"templates": 2, "depth": 2} if method == "cdc" else {}
    )
    curve = accuracy_over_epochs(cell(method, **settings), tiny, DATA)
    result, scores = base_to_new(method, tiny, DATA, shots=3, **settings)
    assert len(curve.base) == len(curve.new) == 4
    assert (curve.base[-1], curve.new[-1]) == (scores["base"].accuracy, scores["new"].accuracy)
    assert curve.loss == tuple(epoch.loss for epoch in result.training.history)
    assert curve.collapsed == result.training.collapsed


def test_what_learns_nothing_has_one_point(tiny):
    curve = accuracy_over_epochs(cell("zero-shot"), tiny, DATA)
    _, scores = base_to_new("zero-shot", tiny, DATA, shots=3)
    assert (curve.base, curve.new) == ((scores["base"].accuracy,), (scores["new"].accuracy,))
