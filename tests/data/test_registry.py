import pytest

from promptprism.data.miniworld import worlds
from promptprism.data.registry import load_data, registered
from promptprism.errors import PromptPrismError


def test_entries_tell_what_loading_gives():
    assert {"mini/food", "mini/general", "mini/general-sketch"} <= registered().keys()
    for name in ("mini/clothing", "mini/general-rendition"):
        entry, data = registered()[name], load_data(name)
        assert data.name == name and len(data.class_names) == entry.classes
        counts = {"train": len(data.train), "val": len(data.val), "test": len(data.test)}
        assert {split: count for split, count in counts.items() if count} == entry.images


def test_near_names_are_suggested():
    with pytest.raises(PromptPrismError, match=r"no data 'mini/fod': .*Did you mean mini/food"):
        load_data("mini/fod")
    with pytest.raises(PromptPrismError, match="`promptprism datasets` lists the names"):
        load_data("nowhere")
    with pytest.raises(PromptPrismError, match=r"no data 'x+': there is no such folder"):
        load_data("x" * 5000)
    with pytest.raises(PromptPrismError, match="no data ''"):
        load_data("")


def test_miniworld_has_a_knob():
    confounded = load_data("mini/clothing@0.9")
    assert confounded.name == "mini/clothing@0.9"
    assert [r.source for r in confounded.train] == [r.source for r in worlds.load("mini/clothing", 0.9).train]
    assert [r.source for r in confounded.test] == [r.source for r in worlds.load("mini/clothing", 0.0).test]
    for name, says in (("mini/clothing@much", "rho = 'much' of"), ("mini/clothing@1.5", "rho = 1.5 is no")):
        with pytest.raises(PromptPrismError, match=says):
            load_data(name)
