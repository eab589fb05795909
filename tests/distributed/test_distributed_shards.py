"""Shards named by several processes, and whatever can be wrong with shards, folders and stores."""

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import fsspec
import pytest
import torch
from shard_world import SPACE, classifier, cut, deadly, rows, same, scenes, shards, white, write_shard
from typer.testing import CliRunner

from promptprism import adapter
from promptprism.adapter import Card, save_adapter
from promptprism.cli import app, predict_shards
from promptprism.data import growing, stores
from promptprism.distributed import processes
from promptprism.distributed.naming import Failed, Naming, attempt, finished, name_shard
from promptprism.distributed.processes import name_by_processes, pack, unpack
from promptprism.errors import PromptPrismError
from promptprism.methods import METHODS, build_method, make_settings
from promptprism.training.loop import learn

pytest.importorskip("pyarrow")
RUN = "0123456789ab"


@pytest.fixture(autouse=True)
def one_thread():
    """As many as the workers have: sums in another order have other last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one(tiny):
    return classifier(tiny)


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """An adapter of the tiny model."""
    settings = make_settings("cdc", templates=2, depth=2, epochs=0, class_offsets=False)
    trained = learn(settings, tiny, SPACE, ())
    folder = tmp_path_factory.mktemp("adapter") / "a"
    save_adapter(folder, trained.method, Card.of(trained, SPACE, None))
    return folder


def predict(*arguments, code=0):
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output + result.stderr
    return result


def kill_one_when(started):
    """Kill one of the processes of this one as soon as something is there."""

    def wait():
        while not started():
            time.sleep(0.01)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_distributed_shards_equal_those_of_one_process_row_for_row(saved, one, tiny, tmp_path, monkeypatch):
    """2,000 scenes in 40 shards, two processes of which one is killed, a shard cut short and then mended."""
    monkeypatch.setattr(adapter, "load_backbone", lambda *_, **__: tiny)
    pattern, out, alone = shards(tmp_path / "in", 40, 50), tmp_path / "out", tmp_path / "alone"
    places = sorted((tmp_path / "in").iterdir())
    for place in places:
        name_shard(one, Naming(str(alone), RUN), str(place))
    whole = cut(places[7])
    options = (saved, f"wds:{pattern}", "--engine", "processes", "--workers", 2, "--out", out, "--json", "-")
    killed = kill_one_when(lambda: len(list(out.glob("answers/*.parquet"))) > 3)
    said = predict(*options, code=1)
    killed.join()
    content = json.loads(said.stdout)
    assert content["shards"] == {"all": 40, "before": 0, "now": 39}
    (failure,) = content["failures"]
    assert failure["shard"] == str(places[7]) and "whole tar file" in failure["error"]
    assert f"node '{failure['node']}', shard '{places[7]}'" in said.stderr
    assert content["images"] + content["unread_images"] == 39 * 50 and content["unread_images"] == 1
    assert sum(content["counts"].values()) == content["images"] and content["answered_before"] == 0
    places[7].write_bytes(whole)
    written = {path: path.stat().st_mtime_ns for path in out.glob("answers/*.parquet")}
    content = json.loads(predict(*options, code=1).stdout)  # one image is none
    assert content["shards"] == {"all": 40, "before": 39, "now": 1} and not content["failures"]
    assert content["answered_before"] == 39 * 50 - 1 and content["images"] == 40 * 50 - 1
    assert all(path.stat().st_mtime_ns == at for path, at in written.items())
    assert rows(out) == rows(alone) and rows(out, "unread") == rows(alone, "unread")
    paths = [
        row["path"] for kind in ("answers", "unread") for part in rows(out, kind).values() for row in part
    ]
    assert sorted(paths) == [f"{place}: {number:04}.png" for place in places for number in range(50)]
    assert sorted(path.name for path in out.iterdir()) == [
        "answers",
        "unread",
    ]  # no lock, nothing half-written
    assert all(path.suffix == ".parquet" for path in out.glob("*/*"))
    table = tmp_path / "one.parquet"
    predict(saved, f"wds:{places[1]}", "--out", table, code=1)  # the plain way
    plain = growing.arrow().parquet.read_table(table).to_pylist()
    for row, other in zip(
        [row for row in plain if not row["error"]], rows(out)[f"{places[1].stem}.parquet"], strict=True
    ):
        assert (row["path"], row["class"]) == (other["path"], other["class"])
        assert row["probability"] == pytest.approx(other["probability"], abs=1e-6)
    assert rows(out, "unread")[f"{places[1].stem}.parquet"] == [
        {"path": row["path"], "error": row["error"]} for row in plain if row["error"]
    ]


@pytest.mark.slow
def test_distributed_a_shard_that_kills_is_given_up_and_nothing_piles_up(one, tmp_path):
    shards(tmp_path / "in", 5, 4)
    write_shard(tmp_path / "in" / "shards-000002.tar", [white()])
    places = [str(place) for place in sorted((tmp_path / "in").iterdir())]
    naming = Naming(str(tmp_path / "out"), RUN)
    results = name_by_processes(deadly(one), naming, places, 2)
    first = next(results)
    time.sleep(2)
    assert len(rows(tmp_path / "out")) <= 3  # what was told, and what each was given since
    found = [first, *results]
    (failed,) = [one for one in found if isinstance(one, Failed)]
    assert failed.shard == places[2] and "died 3 times, the last time by SIGKILL" in failed.reason
    assert len(rows(tmp_path / "out")) == 4 and not multiprocessing.active_children()
    with pytest.raises(PromptPrismError, match=r"do nothing but die, the last by SIGKILL.*fewer --workers"):
        list(name_by_processes(deadly(one), naming, [places[2]] * 9, 1))


@pytest.mark.slow
def test_distributed_a_run_that_is_stopped_says_what_is_kept(saved, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(adapter, "load_backbone", lambda *_, **__: tiny)
    pattern, out = shards(tmp_path / "in", 4, 3), tmp_path / "out"
    options = (saved, f"wds:{pattern}", "--engine", "processes", "--workers", 1, "--out", out)
    watched = predict_shards._watched

    def stopped(results, count):
        yield next(watched(results, count))
        raise KeyboardInterrupt

    monkeypatch.setattr(predict_shards, "_watched", stopped)
    said = predict(*options, code=130)
    assert "1 of 4 shards are done; the same command goes on" in said.stderr.replace("\n    ", " ")
    assert not multiprocessing.active_children() and len(rows(out)) == 1
    monkeypatch.setattr(predict_shards, "_watched", lambda results, count: pytest.fail(f"{count} are left"))
    with pytest.raises(BaseException, match="3 are left"):
        CliRunner().invoke(app, ["predict", *map(str, options)], catch_exceptions=False)
    refused = predict(*options, "--abstain-below", 0.5, code=2)
    assert "holds answers of another adapter, or with other classes" in refused.stderr.replace("\n    ", " ")


@pytest.mark.slow
def test_distributed_what_cannot_be_meant_is_refused(saved, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(adapter, "load_backbone", lambda *_, **__: pytest.fail("long work has begun"))
    pattern = f"wds:{shards(tmp_path / 'in', 2, 2)}"
    write_shard(tmp_path / "other" / "shards-000001.tar", scenes(1))
    (tmp_path / "file").write_text("")
    out = ("--out", tmp_path / "out")
    for options, words in (
        ((pattern, "--workers", 2), "--workers and --once are for shards: add --engine"),
        ((pattern, "--once"), "--workers and --once are for shards"),
        ((pattern, "--engine", "spark", *out), "no engine 'spark': give processes, ray or ray://HOST:PORT"),
        ((pattern, "--engine", "ray://", *out), "no engine 'ray://'"),
        ((pattern, "--engine", "processes"), "give --out a folder or an address"),
        ((pattern, "--engine", "processes", "--out", "a.parquet"), "give --out a folder or an address"),
        ((pattern, "--engine", "processes", *out, "--templates"), "--templates is for one process"),
        ((pattern, "--engine", "processes", *out, "--sort-into", "x"), "--sort-into is for one process"),
        ((tmp_path, "--engine", "processes", *out), "is none: give wds:PATTERN"),
        ((f"wds:{tmp_path}/in/no-{{0..3}}.tar", "--engine", "processes", *out), "4 of 4 shards"),
        ((pattern, f"wds:{tmp_path}/other", "--engine", "processes", *out), "tables of the same name"),
    ):
        said = " ".join(predict(saved, *options, code=2).stderr.split())
        assert words in said, options
    monkeypatch.setattr(adapter, "load_backbone", lambda *_, **__: tiny)
    for place, words in ((tmp_path / "file", "is a file: name a folder"), ("zz://b/x", "Protocol not known")):
        said = predict(saved, pattern, "--engine", "processes", "--out", place, code=2)
        assert words in " ".join(said.stderr.split())
    assert not (tmp_path / "out").exists()


def test_distributed_no_shard_at_all_could_be_named_is_code_2(saved, tiny, one, tmp_path, monkeypatch):
    monkeypatch.setattr(adapter, "load_backbone", lambda *_, **__: tiny)
    here = lambda classifier, naming, shards, workers: (attempt(one, naming, shard) for shard in shards)  # noqa: E731
    monkeypatch.setattr(processes, "name_by_processes", here)
    (tmp_path / "a.tar").write_text("no tar")
    said = predict(saved, tmp_path / "a.tar", "--engine", "processes", "--out", tmp_path / "out", code=2)
    assert "no shard could be named. On '" in said.stderr and "whole tar file" in said.stderr
    assert not list((tmp_path / "out").rglob("*.*"))


@pytest.mark.slow
def test_distributed_shards_that_are_not_whole_leave_no_table(one, tmp_path):
    naming = Naming(str(tmp_path / "out"), RUN)
    path = write_shard(tmp_path / "a.tar", scenes(3))
    whole = path.read_bytes()
    end = whole.rstrip(b"\0")
    member = len(end) + -len(end) % 512  # the last member's end: what follows says that it is the last
    for content, words in (
        (whole[:member], "no end mark behind 9 members"),
        (whole[: member - 512], "unexpected end of data|no end mark"),
        (whole[: member - 700] + b"x" * 4096, "no end mark"),
        (b"", "empty file"),
        (b"\x1f\x8b" + whole, "invalid header|whole tar"),
    ):
        path.write_bytes(content)
        failed = attempt(one, naming, str(path))
        assert isinstance(failed, Failed)
        with pytest.raises(PromptPrismError, match=words):
            name_shard(one, naming, str(path))
    assert not list((tmp_path / "out").rglob("*.*"))
    path.write_bytes(whole)
    assert name_shard(one, naming, str(path)).images == 3
    write_shard(tmp_path / "a.tar", [])
    with pytest.raises(PromptPrismError, match=r"for another shard, '.*/a.tar' of 30,720 bytes, not for '"):
        finished(naming, [str(path)])
    (tmp_path / "out" / "answers" / "a.parquet").write_text("no table")
    with pytest.raises(PromptPrismError, match="is no table of answers for a shard"):
        finished(naming, [str(path)])


def test_distributed_stores_of_objects(one, tmp_path):
    store = fsspec.filesystem("memory")
    for number in range(3):
        path = write_shard(tmp_path / f"{number}.tar", scenes(4))
        store.pipe(f"/bucket/in/{number}.tar", path.read_bytes())
    naming, alone = Naming("memory://bucket/out", RUN), Naming(str(tmp_path / "out"), RUN)
    stores.check_folder(naming.out)
    places = predict_shards.shards_of(["wds:memory://bucket/in/{0..2}.tar"])
    found = predict_shards.shards_of(["wds:memory://bucket/in"])
    assert [place.replace(":///", "://") for place in found] == places
    assert places == [f"memory://bucket/in/{number}.tar" for number in range(3)]
    assert not finished(naming, places)
    assert isinstance(attempt(one, naming, "memory://bucket/in/9.tar"), Failed)
    for place in places[:2]:
        assert name_shard(one, naming, place).shard == f"in/{place[-5:]}"
        name_shard(one, alone, str(tmp_path / place[-5:]))
    done = finished(naming, places)
    assert list(done) == places[:2] and done[places[0]].images == 4
    for name in ("answers/0.parquet", "unread/1.parquet"):
        target = tmp_path / "copied" / name
        target.parent.mkdir(parents=True)
        target.write_bytes(store.cat(f"/bucket/out/{name}"))
    copied, own = rows(tmp_path / "copied")["0.parquet"], rows(tmp_path / "out")["0.parquet"]
    assert [row.pop("path") for row in copied] == [f"{places[0]}: {number:04}.png" for number in range(4)]
    assert copied == [{name: value for name, value in row.items() if name != "path"} for row in own]
    assert sorted(store.ls("/bucket/out", detail=False)) == ["/bucket/out/answers", "/bucket/out/unread"]


def test_distributed_stores_that_cannot_be_opened_say_what_is_missing(monkeypatch):
    def lacking(place):
        raise ImportError("Install s3fs to access S3")

    class NoCredentialsError(Exception):
        pass

    class Closed:
        def glob(self, path):
            raise NoCredentialsError("Unable to locate credentials")

        def info(self, path):
            raise OSError("timed out")

    monkeypatch.setattr(fsspec.core, "url_to_fs", lacking)
    with pytest.raises(PromptPrismError, match=r"'s3://b/\*.tar' .*driver is missing: Install s3fs"):
        predict_shards.shards_of(["wds:s3://b/*.tar"])
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda place: (Closed(), "b/x"))
    with pytest.raises(PromptPrismError, match=r"'s3://b/\*.tar' \(NoCredentialsError: .*AWS_PROFILE"):
        predict_shards.shards_of(["wds:s3://b/*.tar"])
    with pytest.raises(PromptPrismError, match=r"'s3://b/0.tar' \(OSError: timed out\): check the address"):
        stores.size_of("s3://b/0.tar")


def test_distributed_pictures_with_the_same_bytes_are_looked_at_once(one, tmp_path):
    images = list(scenes(4))
    broken = b"\x89PNG\r\n no image"
    first = write_shard(tmp_path / "a.tar", [images[0], images[1], images[0], broken, broken])
    second = write_shard(tmp_path / "b.tar", [images[1], images[2], images[0]])
    plain, once = Naming(str(tmp_path / "plain"), RUN), Naming(str(tmp_path / "once"), RUN, once=True)
    (tmp_path / "once").mkdir()
    looked = [
        name_shard(one, naming, str(path)).looked for naming in (plain, once) for path in (first, second)
    ]
    assert looked == [5, 3, 3, 1]  # a, b, broken; then c
    for table, own in rows(tmp_path / "once").items():
        for row, other in zip(own, rows(tmp_path / "plain")[table], strict=True):
            assert row["path"] == other["path"] and row["class"] == other["class"]
            assert row["probability"] == pytest.approx(other["probability"], abs=1e-6)
    assert [len(part) for part in rows(tmp_path / "once", "unread").values()] == [2, 0]
    once.seen.write_text("no data base")
    with pytest.raises(PromptPrismError, match="cannot use"):
        name_shard(one, once, str(first))


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS.own))
def test_distributed_what_every_method_has_made_goes_to_other_processes(tiny, method, tmp_path):
    settings = make_settings(method)
    made = build_method(settings, tiny, 1)
    made.allot(len(SPACE), 3)
    one = made.classifier(SPACE)
    pack(one, Path(tmp_path, "classifier"))
    assert same(unpack(Path(tmp_path, "classifier"), "cpu"), one)


def test_distributed_what_cannot_be_sent_is_named(one, tmp_path, monkeypatch):
    monkeypatch.setattr(one.backbone, "tokenizer", lambda texts, context_length: None)
    with pytest.raises(
        PromptPrismError, match=r"method 'cdc' on backbone 'tiny' cannot be sent .*without --engine"
    ):
        pack(one, tmp_path / "x")
