import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import scale, scale_paper
from benchmarks.scale import Point, fit_growth, growth, measure_classes
from promptprism.evaluation.estimate import estimate_suite

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/explanation/scale.md"
RESULT = ROOT / "benchmarks/results/scale.json"


def points(start, serial, parallel):
    model = {"start": start, "serial": serial, "parallel": parallel}
    return [Point(n, w, scale_paper.seconds(model, n, w)) for n in (100, 400) for w in (1, 2)]


def test_growth_is_found_again():
    assert fit_growth(points(3.0, 0.01, 0.2)) == pytest.approx(
        {"start": 3.0, "serial": 0.01, "parallel": 0.2}
    )
    found = growth(points(3.0, 0.0, 0.2))
    assert found["speedup"] == pytest.approx(83 / 43) and found["largest_error"] == pytest.approx(0, abs=1e-9)
    assert found["model"]["serial"] == pytest.approx(0, abs=1e-9)
    noisy = [Point(100, 1, 20.0), Point(100, 2, 9.0), Point(400, 1, 80.0), Point(400, 2, 36.0)]
    model = fit_growth(noisy)  # better than twice as fast: what does not divide is nothing, not less
    assert model["serial"] == 0 and model["parallel"] > 0 and scale_paper.workers_to_half(model) is None
    assert scale_paper.workers_to_half({"start": 1, "serial": 0.01, "parallel": 0.2}) == pytest.approx(20)


def test_what_is_on_the_page_is_what_was_measured():
    found, page = json.loads(RESULT.read_text()), PAGE.read_text(encoding="utf-8")
    names = re.findall(r"<!-- scale: (\w+) -->\n\|", page)
    assert sorted(names) == sorted(scale_paper.tables(found))
    assert scale_paper.filled(page, found) == page
    other = json.loads(RESULT.read_text())
    other["shards"]["speedup"] += 1
    assert scale_paper.filled(page, other) != page


@pytest.mark.slow
def test_what_is_on_paper_follows_from_what_was_measured(monkeypatch):
    found = json.loads(RESULT.read_text())
    estimated = []  # one of the suites, as all take a minute

    def estimate(suite, **how):
        if suite.name == "paper/cross-dataset":
            estimated.append(estimate_suite(suite, **how))
        return estimated[-1] if suite.name == "paper/cross-dataset" else SimpleNamespace(cells=())

    monkeypatch.setattr(scale_paper, "estimate_suite", estimate)
    again, paper = scale_paper.on_paper(found), found["paper"]
    assert again["assumed"] == paper["assumed"]
    assert again["training"] == pytest.approx(paper["training"])
    for table, cells in ((paper["table"], 1632), (again["table"], len(estimated[0].cells))):
        assert table["cells"] == cells > 0
        assert table["gpu_hours"] == pytest.approx(table["pflop"] * 1e3 / 125 / 3600)
    flop = sum(cell.train_flops + cell.test_flops for cell in estimated[0].cells)
    assert (
        again["table"]["pflop"] == pytest.approx(flop / 1e15)
        and again["table"]["pflop"] < paper["table"]["pflop"]
    )
    naming = again["naming"]
    assert naming["zero-shot"] == pytest.approx(paper["naming"]["zero-shot"])
    # A ViT-B/16 is 35.5 GFLOP an image; CDC asks it four times, with some prompts more.
    assert naming["zero-shot"]["pflop"] == pytest.approx(4e8 * 35.5e9 / 1e15, rel=0.02)
    assert 4 < naming["cdc"]["pflop"] / naming["zero-shot"]["pflop"] < 4.2
    assert naming["cdc"]["gpu_hours"] == pytest.approx(naming["cdc"]["pflop"] * 1e3 / 125 / 3600)
    assert again["training"]["share_of_texts"] > 0.9
    assert again["training"]["text_features_bytes"] == 4 * 4 * 21_841 * 512


@pytest.mark.slow
def test_classes_are_measured_in_processes_of_their_own(monkeypatch):
    part, whole = measure_classes([60], 4)
    assert (part["classes"], part["whole"], whole["whole"]) == (60, False, True)
    assert part["text_features_mb"] == whole["text_features_mb"] > 0
    assert all(
        row[name] > 0 for row in (part, whole) for name in ("seconds_per_image", "text_seconds", "peak_mb")
    )


@pytest.mark.slow
def test_shards_and_cells_are_measured_and_two_processes_say_what_one_says(tmp_path):
    found = scale.measure_shards(scale.load_backbone("mini", precision="float32"), tmp_path, 80)
    assert found["equal"] and found["gflop_per_image"] > 0
    assert [(point["n"], point["workers"]) for point in found["points"]] == [
        (20, 1),
        (20, 2),
        (80, 1),
        (80, 2),
    ]
    one, two = found["points"][2:]
    assert found["speedup"] == one["seconds"] / two["seconds"]
