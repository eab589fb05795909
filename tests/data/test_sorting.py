import csv
import errno
import os
import re
from types import SimpleNamespace

import pytest

from promptprism.data.growing import GrowingTable, text_of
from promptprism.data.photos import Heap
from promptprism.data.sorting import Sorter
from promptprism.errors import PromptPrismError
from promptprism.files import locked

COLUMNS = {"path": str, "probability": float, "abstained": bool, "error": str}


def keep(line):
    return line


def grown(path, run="r", again=keep):
    return GrowingTable(path, COLUMNS, run, again)


def lines(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_grows_and_goes_on_where_it_stopped(tmp_path, ending):
    path = tmp_path / f"t.{ending}"
    first, odd = {"path": "a\nb", "probability": 0.1 + 0.2, "abstained": True}, {"path": "\udce9"}
    with pytest.raises(KeyboardInterrupt), grown(path) as table:
        table.add(first)
        raise KeyboardInterrupt
    with (tmp_path / (".t.parquet.csv" if ending == "parquet" else "t.csv")).open("a") as file:
        file.write("cut,0.")  # killed in the middle of a line
    seen = []
    with grown(path, again=lambda line: seen.append(line["path"]) or line) as table:
        table.add(odd)
        table.add({"path": "bad", "error": "no image"})
    with grown(path, again=lambda line: None if line["error"] else line):
        pass
    assert seen == ["a\nb"]
    if ending == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        made = parquet.read_table(path).to_pylist()
        assert made[0] == {**first, "error": None, "run": "r"}
    else:
        made = lines(path)
        assert float(made[0]["probability"]) == 0.1 + 0.2
    assert [line["path"] for line in made] == ["a\nb", text_of("\udce9")]
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_table_of_something_else_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    with grown(path) as table:
        table.add({"path": "a"})
    before = path.read_text()
    with pytest.raises(PromptPrismError, match="another adapter, or with other classes"), grown(path, "s"):
        pass
    with locked(tmp_path / ".t.csv.lock"), pytest.raises(PromptPrismError, match="another run"), grown(path):
        pass
    assert path.read_text() == before
    path.write_text("path,label\na,b\n")
    with pytest.raises(PromptPrismError, match="is another table"), grown(path):
        pass
    assert path.read_text() == "path,label\na,b\n"
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(PromptPrismError, match="no Parquet file"), grown(tmp_path / "t.parquet"):
        pass
    with pytest.raises(PromptPrismError, match="must end in"):
        grown(tmp_path / "t.xlsx")


@pytest.fixture
def heap(tmp_path):
    for name in ("1/x.png", "2/x.png", "2/X.PNG", "2/y.png"):
        (tmp_path / "heap" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "heap" / name).write_text(name)
    return Heap([tmp_path / "heap"])


def sorted_files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "sorted.csv"
    }


@pytest.mark.parametrize("how", ["copy", "link", "move"])
def test_photos_are_sorted_once_and_never_over_others(tmp_path, heap, how):
    out = tmp_path / "out"
    photos = list(heap)
    for again in range(2):
        with Sorter(out, heap, ["rose", "a/b", "_Abstained"], how, "r") as sorter:
            for photo, name in zip(photos, ("rose", "rose", "a/b", None), strict=True):
                sorter.put(photo, name)
        files = sorted_files(out)
        assert sorted(files.values()) == sorted(str(one.relative_to(tmp_path / "heap")) for one in photos)
        assert {"rose/x.png", "a_b/x.png", "_abstained/y.png"} < files.keys() and len(files) == 4, again
        assert (out / "rose" / "x.png").is_symlink() == (how == "link")
    assert [one.exists() for one in photos] == [how != "move"] * 4
    listed = lines(out / "sorted.csv")
    assert [line["path"] for line in listed] == list(map(str, photos))
    assert all((out / line["place"]).exists() for line in listed)


def test_a_photo_that_was_listed_but_not_put_is_put_again(tmp_path, heap):
    photo, *_ = heap
    with Sorter(tmp_path / "out", heap, ["rose"], "copy", "r") as sorter:
        sorter.put(photo, "rose")
    (tmp_path / "out" / "rose" / photo.name).unlink()
    with Sorter(tmp_path / "out", heap, ["rose"], "copy", "r") as sorter:
        sorter.put(photo, "rose")
    assert list(sorted_files(tmp_path / "out")) == [f"rose/{photo.name}"]


def test_where_photos_must_not_go_is_refused(tmp_path, heap):
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").touch()
    (tmp_path / "link").symlink_to(tmp_path / "heap")
    for folder, words in (
        (tmp_path / "heap", "into itself"),
        (tmp_path / "heap" / "1" / "new", "into itself"),
        (tmp_path / "link" / "new", "into itself"),
        (tmp_path, "holds other files"),
        (other, "holds other files"),
        (other / "mine.txt", "holds other files"),
    ):
        with pytest.raises(PromptPrismError, match=words):
            Sorter(folder, heap, ["rose"], "copy", "r")
    with Sorter(tmp_path / "out", heap, ["rose"], "copy", "r") as sorter:
        sorter.put(next(iter(heap)), "rose")
    for run, how in (("other", "copy"), ("r", "link")):
        with (
            pytest.raises(PromptPrismError, match="another adapter"),
            Sorter(tmp_path / "out", heap, ["rose"], how, run),
        ):
            pass
    with pytest.raises(PromptPrismError, match="leave out --link"):
        Sorter(tmp_path / "new", Heap(["s.tar"]), ["rose"], "link", "r")


def test_a_last_line_that_is_cut_within_its_run_is_none(tmp_path):
    path = tmp_path / "t.csv"
    with grown(path, run="9bc235") as writing:
        writing.add({"path": "a", "probability": 0.5})
    whole = path.read_text()
    path.write_text(whole[:-4])
    with grown(path, run="9bc235") as writing:
        writing.add({"path": "a", "probability": 0.5})
    assert path.read_text() == whole


def test_a_full_disk_is_told_of(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        pytest.raises(PromptPrismError, match=r"cannot write .*t\.csv' .No space left .* goes on when"),
        grown(tmp_path / "t.csv") as writing,
    ):
        monkeypatch.setattr(writing, "_file", SimpleNamespace(flush=full))
        writing.add({"path": "a", "probability": 0.5})


def test_a_link_that_is_moved_leads_where_it_led(tmp_path, heap):
    link = tmp_path / "heap" / "z.png"
    link.symlink_to("2/y.png")
    with Sorter(tmp_path / "out", heap, ["rose"], "move", "r") as sorter:
        sorter.put(link, "rose")
    assert not link.is_symlink()
    assert (tmp_path / "out" / "rose" / "z.png").read_text() == "2/y.png"


def test_what_cannot_be_taken_out_of_its_folder_is_not_copied(tmp_path, heap, monkeypatch):
    photo, *_ = heap
    monkeypatch.setattr(os, "access", lambda *_: False)
    with (
        Sorter(tmp_path / "out", heap, ["rose"], "move", "r") as sorter,
        pytest.raises(PromptPrismError, match=f"it cannot be taken out of '{re.escape(str(photo.parent))}'"),
    ):
        sorter.put(photo, "rose")
    assert photo.exists() and not sorted_files(tmp_path / "out")
    monkeypatch.undo()
    with Sorter(tmp_path / "out", heap, ["rose"], "move", "r") as sorter:
        sorter.put(photo, "rose")
    assert not photo.exists() and list(sorted_files(tmp_path / "out")) == [f"rose/{photo.name}"]
