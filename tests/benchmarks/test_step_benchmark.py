import csv

import pytest

from benchmarks import measure, step
from promptprism.cost import speed
from promptprism.cost.arithmetic import image_flops, text_flops
from promptprism.errors import PromptPrismError


@pytest.fixture
def small(tiny_factory, monkeypatch):
    def model(name, precision="float32"):
        return tiny_factory().model if precision == "float32" else tiny_factory("bfloat16").model

    monkeypatch.setattr(step, "random_model", model)
    monkeypatch.setattr(step, "random_backbone", lambda name, precision: tiny_factory(precision))
    monkeypatch.setattr(step, "measure_gigaflops", lambda precision: 100.0)


@pytest.mark.slow
def test_both_ways_agree_and_are_measured(small, tmp_path):
    result = step.compare("tiny", 12, 2, 3, 9, "float32", repeats=2)
    assert result["max_abs_difference"] < 1e-4
    assert {"text", "image", "gradient of learner.context"} < result["differences"].keys()
    paths = result["paths"]
    ratio = paths["ours"]["seconds"] / paths["reference_m1"]["seconds"]
    assert result["ratio_to_reference_m1"] == pytest.approx(ratio, rel=0.1)
    table = tmp_path / "results" / "step.csv"
    for _ in range(2):
        measure.append_rows(table, step.rows(result))
    with table.open() as file:
        found = list(csv.DictReader(file))
    assert [row["path"] for row in found] == ["ours", "reference_m1", "reference_same_m"] * 2
    assert [row["templates"] for row in found[:3]] == ["2", "1", "2"]
    with pytest.raises(PromptPrismError, match="has columns"):
        measure.append_rows(table, [{"other": 1}])


@pytest.mark.slow
def test_a_disagreement_is_an_error(small, monkeypatch):
    monkeypatch.setattr(step, "TOLERANCE", -1.0)
    with pytest.raises(PromptPrismError, match="differ by up to"):
        step.compare("tiny", 5, 1, 2, 2, "float32", repeats=1)


def test_class_names_are_distinct_and_of_varied_length():
    for count in (10, 1000, 10_000):
        names = speed.class_names(count)
        assert len(set(names)) == count
        assert len({len(name.split()) for name in names}) > 1
    with pytest.raises(PromptPrismError, match="10075 class names to measure with, not 20000"):
        speed.class_names(20_000)


def test_arithmetic_is_the_closed_form(tiny):
    patches, width, layers = 16, tiny.vision_width, tiny.vision_layers
    tower = layers * (24 * (patches + 3) * width**2 + 4 * (patches + 3) ** 2 * width)
    assert image_flops(tiny, prompts=2) == 2 * patches * 3 * 64 * width + tower
    tokens = tiny.tokenize(["a photo of a cat.", "a photo of a red fox."])
    width, layers = tiny.text_width, tiny.text_layers
    own = (tiny.text.end(tokens) - 4).tolist()
    pairs = 25 + sum(length * (length + 5) for length in own)
    assert text_flops(tiny, tokens) == layers * (24 * (5 + sum(own)) * width**2 + 4 * pairs * width)
