import csv
import json
import math
import os
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from toys import colours

from benchmarks import anytime, conformal, evaluation, late_prompts, picture, serving, suggest
from benchmarks.measure import write_rows
from promptprism import PromptPrism
from promptprism.data.images import load_image
from promptprism.errors import PromptPrismError
from promptprism.evidence import Opinion
from promptprism.inference.conformal import Calibration, Sets

pytestmark = pytest.mark.filterwarnings("ignore:the run collapsed")  # random weights see little


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def split(weights, labels):
    return anytime.Split(Opinion(torch.tensor(weights)), torch.tensor(labels))


@pytest.fixture
def source():
    """Template 1 is wrong on image 2 by little, template 2 right by much; 3 agrees with all."""
    weights = [
        [[4.0, 0.0], [1.5, 1.0], [0.0, 9.0]],
        [[2.0, 0.0], [0.0, 8.0], [0.0, 5.0]],
        [[1.0, 0.0], [0.0, 6.0], [0.0, 2.0]],
    ]
    both = split(weights, [0, 1, 1])
    return anytime.Source("made/up", "dempster", both, both)


def test_a_curve_is_the_replay_by_hand(source):
    rows = anytime.curve(source, "lead", "learned", [1.0, 1.4, 3.0])
    assert [row["test_templates"] for row in rows] == [1.0, 1.3333, 3.0]
    assert [row["test_accuracy"] for row in rows] == [66.667, 100.0, 100.0]
    assert [row["test_points_to_all"] for row in rows] == [-33.333, 0.0, 0.0]
    assert rows[1]["margin"] == 0.5 and rows[2]["margin"] == math.inf
    best = anytime.curve(source, "lead", "best first", [1.0])  # templates 2 and 3 are always right
    assert best[0]["test_accuracy"] == 100


def test_rules():
    so_far = Opinion(torch.tensor([[[3.0, 1.0]], [[6.0, 2.0]], [[6.0, 5.0]]]))
    assert anytime.certainty(so_far, "lead").flatten().tolist() == [2, 4, 1]
    assert anytime.certainty(so_far, "lead per template to come").flatten().tolist() == [1, 4, 1]
    expected = -so_far.uncertainty.log().flatten()
    assert torch.allclose(anytime.certainty(so_far, "uncertainty").flatten().float(), expected)


def test_the_chosen_budget_loses_nothing_from_there_on(source):
    hard = replace(source, data="made/hard", val=split(source.val.opinions.weight.tolist(), [0, 0, 1]))
    rows = anytime.curves([source, hard], [1.0, 1.4, 3.0])
    assert len(rows) == 3 * len(anytime.RULES) * len(anytime.ORDERS) * 3
    mean = [row for row in rows if row["data"] == "mean"][:3]
    assert [row["val_points_to_all"] for row in mean] == [0.0, 0.0, 0.0]  # one gains what the other loses
    alone = [row for row in anytime.curves([source], [1.0, 1.4, 3.0]) if row["data"] == "mean"][:3]
    assert [row["chosen"] for row in alone] == [False, True, False]


@pytest.mark.slow
def test_adapters_are_read_asked_and_written(tiny, tmp_path, monkeypatch, capsys):
    data = colours()
    data = replace(data, val=data.test)
    model = PromptPrism("cdc", tiny, templates=2, epochs=1).fit(data)
    monkeypatch.setattr(anytime, "load_data", lambda name: data)
    monkeypatch.setattr(anytime, "load_model", lambda path: model)
    table = tmp_path / "anytime.csv"
    anytime.main([model.save(tmp_path / "a")], step=0.5, csv_file=table)
    rows = read(table)
    assert len(rows) == 2 * len(anytime.RULES) * len(anytime.ORDERS) * 3
    full = [row for row in rows if float(row["budget"]) == 2]
    assert {float(row["test_templates"]) for row in full} == {2.0}
    accuracy = 100 * model.score(data)
    assert all(float(row["test_accuracy"]) == pytest.approx(accuracy, abs=1e-3) for row in full)
    assert "lead, learned" in capsys.readouterr().out
    with pytest.raises(PromptPrismError, match="needs validation and test images"):
        monkeypatch.setattr(anytime, "load_data", lambda name: colours())
        anytime.read_source(model, "colours")


@pytest.mark.slow
def test_evaluation_measures_all_paths(tiny_factory, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluation, "random_model", lambda name, precision: tiny_factory(precision).model)
    monkeypatch.setattr(evaluation, "random_backbone", lambda name, precision: tiny_factory(precision))
    table = tmp_path / "evaluation.csv"
    evaluation.main("tiny", classes=5, templates=2, batch=3, repeats=1, csv_file=table)
    rows = {row["path"]: row for row in read(table)}
    assert list(rows) == ["open_clip", "zero-shot", "cdc", "cdc from files"]
    speed = {name: float(row["images_per_second"]) for name, row in rows.items()}
    assert float(rows["open_clip"]["share_of_quarter"]) == 2
    share = float(rows["cdc"]["share_of_quarter"])
    assert share == pytest.approx(2 * speed["cdc"] / speed["open_clip"], rel=0.01)
    photo = load_image(evaluation.write_photos(tmp_path, 1)[0])
    assert photo.size == (500, 375) and len(photo.getcolors(500 * 375)) > 1000


@pytest.mark.slow
def test_late_prompts_are_scored_once_and_cost_against_the_first_layer(tiny, monkeypatch, tmp_path, capsys):
    suite = SimpleNamespace(methods={"cdc": {"epochs": 1, "batch_size": 4, "templates": 2}})
    monkeypatch.setattr(late_prompts, "load_suite", lambda name: suite)
    monkeypatch.setattr(late_prompts, "load_backbone", lambda precision: tiny)
    monkeypatch.setattr(late_prompts, "load_data", lambda name: colours())
    table = tmp_path / "late.csv"
    for _ in range(2):
        late_prompts.main(data=["toy"], shots=2, repeats=1, csv_file=table)
    rows = read(table)
    assert [(row["data"], row["vision_from"]) for row in rows] == [("toy", "0"), ("toy", "1")]
    assert capsys.readouterr().out.count("\n") == 2  # the second time everything is there
    assert float(rows[0]["step_to_0"]) == 1 and float(rows[1]["step_to_0"]) > 0
    assert int(rows[0]["trainable"]) - int(rows[1]["trainable"]) == 2 * (48 * 64 + 64)
    assert 0 <= float(rows[1]["base"]) <= 100 and rows[1]["batch"] == "4"
    monkeypatch.setattr(late_prompts, "random_backbone", lambda name, precision: tiny)
    late_prompts.main(cost_of="tiny", classes=5, batch=2, repeats=1, csv_file=table)
    assert [row["hm"] for row in read(table)[2:]] == ["", ""]


@pytest.mark.slow
def test_pictures_are_drawn_of_what_there_is(tmp_path, source):
    with pytest.raises(PromptPrismError, match="neither"):
        picture.main(tmp_path)
    write_rows(tmp_path / "anytime.csv", anytime.curves([source], [1.0, 3.0]))
    picture.main(tmp_path)
    shared = {"backbone": "ViT-B-16-quickgelu", "batch": 4, "device": "a processor", "threads": 2}
    paths = (("ours", "bfloat16"), ("reference_m1", "float32"), ("reference_same_m", "bfloat16"))
    step = [
        {"path": path, "classes": k, "templates": 1 if path == "reference_m1" else m, "precision": precision}
        | {"seconds": k * m, "memory_mb": k, "floor_seconds": m if path == "ours" else ""}
        | shared
        for k in (50, 200)
        for m in (1, 4)
        for path, precision in paths
    ]
    write_rows(tmp_path / "step.csv", step)
    row = {"classes": 1000, "templates": 4, "precision": "bfloat16", "seconds": 9, "memory_mb": 99}
    write_rows(tmp_path / "classes.csv", [row | shared, row | shared | {"templates": 1}])
    picture.main(tmp_path)
    texts = [(tmp_path / name).read_bytes() for name in ("cost.svg", "anytime.svg")]
    picture.main(tmp_path)
    assert texts == [(tmp_path / name).read_bytes() for name in ("cost.svg", "anytime.svg")]
    rows = [{"k": "1", "s": "2", "p": "a"}, {"k": "1", "s": "3", "p": "a"}, {"k": "0", "s": "", "p": "a"}]
    assert picture.latest([*rows, {"k": "5", "s": "1", "p": "b"}], "k", "s", p="a") == [(1.0, 3.0)]


@pytest.mark.slow
def test_labels_are_added_by_suggestion_and_at_random(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(suggest, "load_data", lambda name: colours(3, train=4))
    monkeypatch.setattr(suggest, "as_backbone", lambda *_: tiny)
    table = tmp_path / "suggest.csv"
    suggest.main(data=["toy"], rounds=3, seeds=2, csv_file=table)
    rows = read(table)
    assert [(row["chosen"], row["labels"]) for row in rows] == [
        (chosen, str(labels)) for chosen in ("suggest", "random") for labels in (3, 6, 9, 12)
    ]
    # They begin with the same images, and end with all there are.
    assert all(rows[at]["accuracy"] == rows[at + 4]["accuracy"] for at in (0, 3))


def test_coverage_sizes_and_errors_by_hand():
    shares = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.45, 0.05], [0.6, 0.1, 0.3], [0.2, 0.3, 0.5]])
    labels = torch.tensor([0, 1, 1, 2])
    found = Calibration(
        temperature=1,
        risk=0.3,
        threshold=0.6,
        answered=0.5,
        sets=Sets(score="lac", alpha=0.1, quantiles=(0.6,), n=9),  # p of 0.4 or more is in a set
        data="made up",
        n=9,
    )
    row = conformal.tried(found, shares.log(), labels)
    assert row["accuracy"] == 0.5 and row["answered"] == 0.5 and row["wrong"] == 0.5
    assert row["coverage"] == 0.75 and row["size"] == 1.25 and row["worst_class"] == 0.5
    by_class = found.model_copy(update={"sets": Sets(score="lac", alpha=0.1, quantiles=(0.6, 1, 0), n=9)})
    row = conformal.tried(by_class, shares.log(), labels)  # any 1 is in a set, no 2 unless it is first
    assert row["coverage"] == 1 and row["size"] == 2
    none = conformal.tried(found.model_copy(update={"threshold": None}), shares.log(), labels)
    assert none["answered"] == 0 and math.isnan(none["wrong"])


@pytest.mark.slow
def test_conformal_sets_are_tried_on_base_and_new_classes_once(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(conformal, "load_data", lambda *_: colours(4, train=16, test=12))
    monkeypatch.setattr(conformal, "as_backbone", lambda *_: tiny)
    table = tmp_path / "conformal.csv"
    for _ in range(2):
        conformal.main(data=["mini/toy"], epochs=1, draws=5, alpha=0.4, csv_file=table)
    rows = read(table)
    assert [(row["part"], row["score"], row["per_class"]) for row in rows if row["part"] == "base"] == [
        ("base", "lac", "False"),
        ("base", "aps", "False"),
        ("base", "lac", "True"),
    ]
    new = [row for row in rows if row["part"] == "new"]
    assert len(rows) == 5 and {row["images"] for row in new} == {"24"} and rows[0]["images"] == "12"
    head, _, base, last = conformal.table(rows).splitlines()
    assert head.count("|") == base.count("|") and base.startswith("| mini/toy | base | 2 | ")
    assert f"| {100 * float(new[0]['coverage']):.1f} ± " in last and last.startswith(
        "| mini/toy | new | 2 | "
    )
    assert all(0 <= float(row["coverage"]) <= 1 <= float(row["size"]) <= 2 for row in rows)


def test_the_processors_seconds_of_a_process_are_its_own():
    until, before = time.process_time() + 0.2, serving.cpu_seconds_of(os.getpid())
    while time.process_time() < until:
        pass
    assert serving.cpu_seconds_of(os.getpid()) - before == pytest.approx(0.2, abs=0.15)
    assert serving.cpu_seconds_of(2**30) is None


@pytest.mark.slow
def test_a_server_is_measured_beside_offline_batches(monkeypatch, tmp_path):
    monkeypatch.setattr(serving, "CLIENTS", (2,))
    monkeypatch.setattr(serving, "_PHOTOS", 8)
    monkeypatch.setattr(serving, "_SECONDS", 0.3)
    serving.main(str(tmp_path / "serving.json"), backbone="mini", rounds=1)
    found = json.loads((tmp_path / "serving.json").read_text())
    for kind in ("torch", "onnx"):
        (row,) = found[kind]["served"]
        assert row["clients"] == 2 and 0 < row["p50_ms"] <= row["p99_ms"]
        offline = found[kind]["offline_images_per_second"]
        assert row["of_offline"] == pytest.approx(row["images_per_second"] / offline)
        assert row["cpu_of_offline"] > 0 and found[kind]["cold_start_cpu_seconds"] > 0.1
    assert found["onnx"]["cold_start_cpu_seconds"] < found["torch"]["cold_start_cpu_seconds"]
