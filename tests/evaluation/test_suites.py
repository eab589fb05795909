import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from toys import base_to_new, colour_folder
from typer.testing import CliRunner

import promptprism.backbones
from promptprism.cli import app
from promptprism.data.registry import load_data
from promptprism.errors import PromptPrismError
from promptprism.evaluation import run_suite as running
from promptprism.evaluation.metrics import harmonic_mean
from promptprism.evaluation.run_suite import run_suite
from promptprism.evaluation.store import Store, read_failures, read_result, read_results
from promptprism.evaluation.suites import Suite, fingerprint, load_suite
from promptprism.reports.results import group

QUICK = {"epochs": 6, "batch_size": 4, "lr": 0.02}
METHODS = {"zero-shot": {}, "cdc": {**QUICK, "templates": 2}, "two": {"method": "maple", **QUICK}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colour_folder(tmp_path_factory.mktemp("suite") / "colours")


def make(data, **changes):
    fields = {"name": "s", "protocol": "base-to-new", "methods": METHODS, "datasets": (data,), "shots": (2,)}
    return Suite.model_validate(fields | {"seeds": (1, 2)} | changes)


def figures(outcome):
    return {r.key: {part: one.metrics for part, one in r.scores.items()} for r in outcome.results}


def test_what_is_named_twice_is_run_once():
    suite = make("a", seeds=(2, 1, 2), shots=(4, 4), datasets=("a", "a")).only(seeds=[3, 3])
    assert (suite.seeds, suite.shots, suite.datasets) == ((3,), (4,), ("a",))
    assert make("a", seeds=(2, 1, 2)).seeds == (2, 1)


@pytest.mark.slow
def test_cells_are_the_protocol_and_are_run_once(tiny, data, tmp_path):
    shown = []
    outcome = run_suite(make(data), tmp_path, tiny, show=lambda p: shown.append((p.done, p.running)))
    assert outcome.ran == 5 and not outcome.failures  # zero-shot learns nothing: one seed is enough
    assert [(r.cell.method, r.cell.seed) for r in outcome.results] == [
        ("zero-shot", 1), ("cdc", 1), ("cdc", 2), ("maple", 1), ("maple", 2)
    ]  # fmt: skip
    assert shown[0][0] == 0 and shown[-1] == (5, "")
    trained, plain = base_to_new("cdc", tiny, load_data(data), shots=2, seed=2, **METHODS["cdc"])
    result = outcome.results[2]
    for part, quick in plain.items():
        same = {name: result.scores[part].metrics[name] for name in quick.metrics}
        assert same == pytest.approx(quick.metrics, 1e-3)  # in a suite new images meet all classes at once
    assert result.training.history[-1].loss == trained.training.history[-1].loss
    hm = harmonic_mean(plain["base"].accuracy, plain["new"].accuracy)
    assert result.training.collapsed is None and result.summary == {"hm": hm}
    assert result.images == {"base": {"blue": 3, "green": 3}, "new": {"red": 3, "yellow": 3}}
    assert result.backbone.fingerprint == tiny.fingerprint and result.cell.settings.templates == 2
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("results/*.json")}
    again = run_suite(make(data), tmp_path, tiny)
    assert again.ran == 0 and again.results == outcome.results
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("results/*.json")} == before
    more = run_suite(make(data, methods={"cdc": {**METHODS["cdc"], "epochs": 1}}), tmp_path, tiny)
    assert more.ran == 2 and len(read_results(tmp_path)) == 7  # other settings are other cells


@pytest.mark.slow
def test_learning_and_scoring_are_separate(tiny, data, tmp_path, monkeypatch):
    suite = make(data, methods={"cdc": METHODS["cdc"]})
    refused = run_suite(suite, tmp_path, tiny, stage="test")
    assert "run the suite with --stage train first" in refused.failures[0][1]
    assert len(read_failures(tmp_path)) == 2
    learned = run_suite(suite, tmp_path, tiny, stage="train")
    assert learned.ran == 2 and not learned.results and not list(tmp_path.glob("results/*.json"))

    def never(*_, **__):
        raise AssertionError("scoring must not train")

    monkeypatch.setattr(running, "learn", never)
    scored = run_suite(suite, tmp_path, tiny, stage="test")
    assert scored.ran == 2 and len(scored.results) == 2 and not read_failures(tmp_path)


@pytest.mark.slow
def test_a_collapsed_run_has_no_summary(tiny, data, tmp_path, monkeypatch):
    real = running.learn

    def learn(*args, **options):
        trained = real(*args, **options)
        return replace(trained, training=trained.training.model_copy(update={"collapsed": "says the test"}))

    monkeypatch.setattr(running, "learn", learn)
    suite = make(data, methods={"cdc": METHODS["cdc"]}, seeds=(1,))
    result = run_suite(suite, tmp_path, tiny).results[0]
    assert result.training.collapsed == "says the test" and result.summary is None


@pytest.mark.slow
def test_transfer_protocols_share_what_was_learned(tiny, data, tmp_path):
    kept = {"methods": {"cdc": METHODS["cdc"]}, "targets": (data,), "seeds": (1,)}
    first = run_suite(make(data, protocol="cross-dataset", **kept), tmp_path, tiny).results[0]
    second = run_suite(make(data, protocol="cross-domain", **kept), tmp_path, tiny).results[0]
    assert first.key != second.key and first.learned == second.learned
    assert len(list((tmp_path / "adapters").iterdir())) == 1
    assert first.scores.keys() == {"source", data} and first.scores["source"].classes == 4
    assert first.summary == {"average": first.scores[data].accuracy}
    suite = make(data, protocol="few-shot", shots=(1, 2), methods={"cdc": METHODS["cdc"]})
    few = run_suite(suite, tmp_path, tiny)
    found = [(r.cell.shots, r.cell.seed, r.training.images) for r in few.results]
    assert found == [(1, 1, 4), (1, 2, 4), (2, 1, 8), (2, 2, 8)]


@pytest.mark.slow
def test_rows_that_differ_in_predictions_only_learn_once(tiny, data, tmp_path):
    rows = {n: {**METHODS["cdc"], "method": "cdc", "distance_aware": n == "aware"} for n in ("cdc", "aware")}
    plain, aware = run_suite(make(data, methods=rows, seeds=(1,)), tmp_path, tiny).results
    assert plain.key != aware.key and plain.learned == aware.learned
    assert plain.scores["base"].metrics == aware.scores["base"].metrics
    assert plain.scores["new"].metrics["cal/nll"] != aware.scores["new"].metrics["cal/nll"]


@pytest.mark.slow
def test_a_failed_cell_is_recorded_and_the_rest_goes_on(tiny, data, tmp_path, monkeypatch):
    suite = make(data, methods={"maple": QUICK, "cdc": METHODS["cdc"]}, seeds=(1,))
    real = running.learn

    def learn(settings, *args, **options):
        if settings.method == "maple":
            raise MemoryError("too large")
        return real(settings, *args, **options)

    monkeypatch.setattr(running, "learn", learn)
    outcome = run_suite(suite, tmp_path, tiny)
    assert [r.cell.method for r in outcome.results] == ["cdc"]
    assert outcome.failures[0][1] == "MemoryError('too large')"
    assert [(cell.method, error) for cell, error in read_failures(tmp_path)] == [
        ("maple", "MemoryError('too large')")
    ]
    monkeypatch.setattr(running, "learn", real)
    assert run_suite(suite, tmp_path, tiny).ran == 1 and not read_failures(tmp_path)
    gone = run_suite(make("mini/nothing", methods={"zero-shot": {}}), tmp_path, tiny)
    assert "no data 'mini/nothing'" in gone.failures[0][1]


SCRIPT = """
import sys
sys.path[:0] = [{tests!r}]
from conftest import make_tiny
from pathlib import Path
from promptprism.evaluation.metrics import harmonic_mean
from promptprism.evaluation.run_suite import run_suite
from promptprism.evaluation.suites import load_suite
show = lambda p: print(p.done, p.running, flush=True)
run_suite(load_suite({suite!r}), Path({out!r}), make_tiny(), show=show)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_two_may_run_at_once(tiny, data, tmp_path):
    suite = make(data, methods={"cdc": {**METHODS["cdc"], "epochs": 4}, "zero-shot": {}}, seeds=(1, 2, 3))
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(suite.model_dump(mode="json")))
    whole = run_suite(suite, tmp_path / "whole", tiny)
    script = SCRIPT.format(tests=str(Path(__file__).parents[1]), suite=str(path), out=str(tmp_path / "out"))

    def start():
        env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=env)

    process = start()
    for line in process.stdout:
        if line.startswith("1 "):
            break  # in the middle of the second cell
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {file: file.read_bytes() for file in (tmp_path / "out" / "results").glob("*.json")}
    assert 1 <= len(finished) < 4
    last = whole.results[-1]
    (tmp_path / "out" / "results" / f".{last.cell.file_name(last.key)}.json.1.partial").write_text("{ha")
    other = start()
    ended = run_suite(suite, tmp_path / "out", tiny)
    assert other.communicate() and other.returncode == 0
    assert not ended.failures and figures(ended) == figures(whole)
    assert all(file.read_bytes() == content for file, content in finished.items())
    assert not list((tmp_path / "out").rglob("*.partial")) and not list(
        (tmp_path / "out").rglob("*.checkpoint")
    )


@pytest.mark.slow
def test_damaged_results_and_those_of_another_version_are_refused(tiny, data, tmp_path):
    suite = make(data, methods={"zero-shot": {}})
    whole = run_suite(suite, tmp_path, tiny)
    path = next(tmp_path.glob("results/*.json"))
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text) | {"format": 99}))
    with pytest.raises(PromptPrismError, match=r"has format 99, this promptprism .* reads \d+. Move it away"):
        read_result(path)
    path.write_text(json.dumps(json.loads(text) | {"mood": "good"}))
    with pytest.raises(PromptPrismError, match=r"is no result that this promptprism .* reads: 'mood'"):
        read_results(tmp_path)
    path.write_text(text[: len(text) // 2])
    with pytest.raises(PromptPrismError, match=r"is damaged or cut short .* the next run of its suite makes"):
        read_results(tmp_path)
    assert "is damaged or cut short" in run_suite(suite, tmp_path, tiny).failures[0][1]
    path.unlink()
    assert figures(run_suite(suite, tmp_path, tiny)) == figures(whole) and not read_failures(tmp_path)
    with pytest.raises(PromptPrismError, match=r"no such results: .*elsewhere"):
        read_results(tmp_path / "elsewhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PromptPrismError, match="holds no results"):
        read_results(tmp_path / "empty")
    (tmp_path / "file").touch()
    with pytest.raises(PromptPrismError, match="cannot write results to"):
        Store(tmp_path / "file")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("checkpoint", errno.ENOSPC),
        ("results", errno.ENOSPC),
        ("checkpoint", errno.EFBIG),
        ("results", errno.EDQUOT),
    ],
)
def test_a_full_disk_ends_the_run_and_spoils_nothing(tiny, data, tmp_path, monkeypatch, place, number):
    suite = make(data, methods={"zero-shot": {}, "cdc": METHODS["cdc"]}, seeds=(1,))
    real = os.fsync

    def full(descriptor):
        written = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if place in written and (place != "results" or len(list(tmp_path.glob("results/*.json")))):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PromptPrismError, match=rf"cannot write .*{os.strerror(number)}.* free space"):
        run_suite(suite, tmp_path, tiny)
    assert [result.cell.method for result in read_results(tmp_path)] == ["zero-shot"]
    assert not list(tmp_path.rglob("*.partial"))
    monkeypatch.setattr(os, "fsync", real)
    ended = run_suite(suite, tmp_path, tiny)
    assert ended.ran == 1 and len(ended.results) == 2 and not ended.failures


def test_a_finished_suite_is_only_read(tiny, data, tmp_path, monkeypatch):
    suite = make(data, methods={"zero-shot": {}})
    whole = run_suite(suite, tmp_path, tiny)
    for name in ("adapters", "locks", "failures"):
        shutil.rmtree(tmp_path / name)

    def read_only(path, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", read_only)
    monkeypatch.setattr(running.Store, "claim", lambda *_: pytest.fail("a lock is asked for"))
    again = run_suite(suite, tmp_path, tiny)
    assert (again.ran, again.failures, again.results) == (0, [], whole.results)


def test_an_interrupted_suite_says_what_is_kept(tiny, data, tmp_path, monkeypatch):
    suite, real = make(data, methods={"zero-shot": {}, "cdc": METHODS["cdc"]}, seeds=(1,)), running.learn

    def stopped(settings, *args, **options):
        if settings.method == "cdc":
            raise KeyboardInterrupt
        return real(settings, *args, **options)

    monkeypatch.setattr(running, "learn", stopped)
    with pytest.raises(
        KeyboardInterrupt, match=rf"stopped: 1 of 2 cells are finished and kept in '{tmp_path}'"
    ):
        run_suite(suite, tmp_path, tiny)


@pytest.mark.slow
def test_a_checkpoint_beside_a_finished_adapter_is_taken_away(tiny, data, tmp_path):
    suite = make(data, methods={"cdc": METHODS["cdc"]}, seeds=(1,))
    whole = run_suite(suite, tmp_path, tiny, stage="train")
    (adapter,) = (tmp_path / "adapters").iterdir()
    adapter.with_name(f"{adapter.name}.checkpoint").write_text("of a run killed between its last two lines")
    assert not whole.failures and run_suite(suite, tmp_path, tiny).ran == 1
    assert [path.name for path in (tmp_path / "adapters").iterdir()] == [adapter.name]


def test_a_cell_whose_data_is_missing_is_recorded_until_it_is_there(tiny, data, tmp_path):
    link = tmp_path / "later"
    suite = make(str(link), methods={"zero-shot": {}})
    assert "no data" in run_suite(suite, tmp_path / "R", tiny).failures[0][1]
    assert [cell.data for cell, _ in read_failures(tmp_path / "R")] == [str(link)]
    link.symlink_to(data)
    assert run_suite(suite, tmp_path / "R", tiny).ran == 1 and not read_failures(tmp_path / "R")


def test_a_list_of_images_elsewhere_has_a_fingerprint(data, tmp_path):
    table = tmp_path / "own" / "images.csv"
    table.parent.mkdir()
    images = sorted(Path(data).rglob("*.png"))
    rows = [f"{path},{path.parent.name},{path.parent.parent.name}" for path in images]
    table.write_text("path,label,split\n" + "\n".join(rows))
    moved = tmp_path / "moved"
    table.parent.rename(moved)
    fewer = tmp_path / "fewer.csv"
    fewer.write_text("path,label,split\n" + "\n".join(rows[:-1]))
    assert fingerprint(load_data(str(moved / "images.csv"))) != fingerprint(load_data(str(fewer)))


@pytest.mark.slow
def test_fingerprints_follow_images_and_names(data):
    known = fingerprint(load_data("mini/clothing"))
    assert fingerprint(load_data(data)) == fingerprint(load_data(data)) != known
    code = "from promptprism.evaluation.suites import *; from promptprism.data.registry import load_data; "
    code += "print(fingerprint(load_data('mini/clothing')))"
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    assert (
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout.strip()
        == known
    )


@pytest.mark.slow
def test_settings_of_one_data_set_are_of_the_same_row(tiny, data, tmp_path):
    per_data = {data: {"cdc": {"epochs": 1}}}
    suite = make(data, methods={"cdc": METHODS["cdc"]}, datasets=("mini/food", data), per_data=per_data)
    assert [(c.data, c.settings.epochs) for c in suite.cells() if c.seed == 1] == [
        ("mini/food", 6),
        (data, 1),
    ]
    results = run_suite(suite.only(datasets=[data], seeds=[1]), tmp_path, tiny).results
    assert [row.label for row in group(results, suite).by_row] == ["cdc"]


def test_bad_parts():
    with pytest.raises(
        PromptPrismError, match="no suite 'mini/nope': give a YAML file, or one of mini/ablation"
    ):
        load_suite("mini/nope")
    suite = load_suite("mini/base-to-new")
    with pytest.raises(PromptPrismError, match="has no method 'clip'"):
        suite.only(methods=["clip"])
    with pytest.raises(PromptPrismError, match="needs targets"):
        list(make("x", protocol="cross-domain").cells())


@pytest.mark.slow
def test_commands(tiny, data, tmp_path, monkeypatch):
    monkeypatch.setattr(promptprism.backbones, "load_backbone", lambda *_, **__: tiny)
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(make(data).model_dump(mode="json")))
    args = ["suite", str(path), "--methods", "zero-shot,cdc", "--seeds", "1", "--json", "-"]
    run = CliRunner().invoke(app, [*args, "--out", str(tmp_path / "R")])
    content = json.loads(run.stdout)
    assert run.exit_code == 0 and content["ran"] == 2 and len(content["cells"]) == 2
    assert content["cells"][0]["accuracy"].keys() == {"base", "new"}
    report = CliRunner().invoke(app, ["report", str(tmp_path / "R"), "--table", "base-to-new"])
    assert report.exit_code == 0 and "| data | method | base | new | HM | gain | note |" in report.stdout
    assert CliRunner().invoke(app, ["suite", str(path)]).exit_code == 2
    assert CliRunner().invoke(app, [*args, "--seeds", "x", "--out", "R"]).exit_code == 2
    again = CliRunner().invoke(app, [*args[:-2], "--out", str(tmp_path / "R")])
    said = " ".join(again.stdout.split())
    assert "2 results" in said and "0 cells run now" in said and "--table base-to-new --suite" in said


@pytest.mark.slow
def test_report_commands(tiny, data, tmp_path):
    run_suite(make(data, methods={"cdc": METHODS["cdc"]}, seeds=(1,)), tmp_path / "R", tiny)
    before = sorted(tmp_path.rglob("*"))

    def report(*args):
        return CliRunner().invoke(app, ["report", str(tmp_path / "R"), *map(str, args)])

    page = tmp_path / "page.html"
    assert report("--table", "base-to-new", "--format", "html", "--out", page).exit_code == 0
    assert page.read_text().startswith("<!doctype html>")
    drawn = report("--plot", "base-new", "--out", tmp_path / "p.svg", "--json", "-")
    assert json.loads(drawn.stdout)["out"] == str(tmp_path / "p.svg")
    content = json.loads(report("--table", "per-semantic", "--json", "-").stdout)
    assert content["schema"] == "promptprism/report" and content["columns"][3:5] == ["S1", "S2"]
    assert "cdc, seed 1" in report("--table", "base-to-new", "--per-seed").stdout
    assert report("--table", "settings", "--datasets", data).exit_code == 0
    trust = report("--table", "trust", "--format", "html")
    assert trust.exit_code == 0 and trust.stdout.count("<svg") == 2
    for wrong in (
        ["--plot", "base-new"], ["--plot", "base-new", "--out", tmp_path / "p.txt"], ["--table", "nope"], [],
        ["--table", "base-to-new", "--datasets", "x"],
    ):  # fmt: skip
        assert report(*wrong).exit_code == 2
    assert sorted(tmp_path.rglob("*")) == sorted([*before, page, tmp_path / "p.svg"])
