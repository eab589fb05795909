import io
import tarfile

import pytest
from PIL import Image

from promptprism.data.images import load_image
from promptprism.data.photos import Heap
from promptprism.errors import PromptPrismError


@pytest.fixture
def heap(tmp_path):
    for name in ("b.png", "a.png", "deep/er/c.jpg", ".hidden/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "notes.md").write_text("no photo")
    return tmp_path


def found(*places, below=None):
    return [path.relative_to(below).as_posix() if below else path for path in Heap(places)]


def test_folders_patterns_and_lists_name_photos(heap):
    folder = Heap([heap])
    assert [path.name for path in folder] == ["a.png", "b.png", "c.jpg"]
    assert folder.left_out == [heap / "notes.md"] and folder.folders == [heap]
    assert found(f"{heap}/*.png", below=heap) == ["a.png", "b.png"]
    assert found(f"{heap}/**/*.jpg", f"{heap}/d*", below=heap) == ["deep/er/c.jpg", "deep/er/c.jpg"]
    (heap / "list.txt").write_text("b.png\n\ndeep/er/c.jpg\n")
    (heap / "list.csv").write_text("label;path\nx; a.png\n", encoding="utf-8-sig")
    assert found(heap / "list.txt", heap / "list.csv", below=heap) == ["b.png", "deep/er/c.jpg", "a.png"]


def test_shards_need_no_labels(heap):
    with tarfile.open(heap / "s-0.tar", "w") as shard:
        shard.add(heap / "a.png", "x.y.png")
        text = tarfile.TarInfo("x.json")
        shard.addfile(text, io.BytesIO())
    (member,) = Heap([heap / "s-0.tar"])
    assert str(member) == f"{heap / 's-0.tar'}: x.y.png" and load_image(member).size == (8, 8)
    assert Heap([f"wds:{heap}/s-{{0..0}}.tar"]).packed


def test_what_names_no_photos_is_refused(heap):
    (heap / "none").mkdir()
    (heap / "bad.tar").write_bytes(b"x")
    (heap / "empty.txt").touch()
    (heap / "names.csv").write_text("name\nx\n")
    for place, words in (
        (heap / "none", "holds no images"),
        (f"{heap}/*.gif", "nothing is like"),
        (heap / "bad.tar", "must be a whole tar file"),
        (heap / "empty.txt", "names no photos"),
        (heap / "names.csv", "no column 'path'"),
    ):
        with pytest.raises(PromptPrismError, match=words):
            list(Heap([place]))
    with pytest.raises(PromptPrismError, match="no photo to look at"):
        Heap([])
