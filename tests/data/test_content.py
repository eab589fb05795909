import shutil
import warnings

import numpy as np
import pytest
from PIL import Image
from toys import listed, put

from promptprism.data import content
from promptprism.data.check import check_own
from promptprism.data.content import difference_hash, distinct, near_pictures, same_pictures
from promptprism.data.folders import read_folder
from promptprism.data.inputs import label_images
from promptprism.data.miniworld import worlds
from promptprism.errors import DataWarning, PromptPrismError


def copied(root, *pairs):
    for old, new in pairs:
        (root / new).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / old, root / new)
    return root


def test_a_picture_under_two_labels_is_refused(tmp_path):
    put(tmp_path, "a/1.png", "b/1.png", "a/2.png")
    data = read_folder(copied(tmp_path, ("a/2.png", "b/copy.png")))
    with pytest.raises(
        PromptPrismError,
        match=r"1 pictures of .* two labels, first: '.*a/2\.png' \(a\) and '.*b/copy\.png' \(b\)",
    ):
        distinct(data)
    paths = [record.source for record in data.train]
    with pytest.raises(PromptPrismError, match="two labels"):
        distinct(label_images(paths, ["x", "x", "y", "y"]))


def test_copies_in_a_class_and_in_the_test_split_are_counted_and_shots_are_distinct(tmp_path):
    put(tmp_path, "train/a/1.png", "train/b/1.png", "train/a/2.png", "test/a/9.png", "test/b/9.png")
    copied(tmp_path, ("train/a/1.png", "train/a/3.png"), ("train/a/1.png", "train/a/4.png"))
    data = read_folder(copied(tmp_path, ("train/a/2.png", "test/a/8.png"), ("train/b/1.png", "test/b/8.png")))
    with pytest.warns(DataWarning) as caught:
        left = distinct(data)
    said = [str(warning.message) for warning in caught]
    assert len(said) == 2 and said[0].startswith("2 pictures are in several splits")
    assert "train/a/2.png = " in said[0] and "test/a/8.png" in said[0]
    assert said[1].startswith("1 pictures are several times in one class") and "a/4.png" in said[1]
    assert listed(tmp_path, left.train) == [("train/a/1.png", 0), ("train/a/2.png", 0), ("train/b/1.png", 1)]
    assert left.test == data.test


def test_files_of_one_size_and_one_middle_are_compared_to_the_end(tmp_path):
    put(tmp_path, "a/1.png", "b/1.png")
    for name, last in (("a/2.png", 1), ("b/2.png", 2), ("b/3.png", 2)):
        (tmp_path / name).write_bytes(bytes(100_000) + bytes([last]))
    same = same_pictures(read_folder(tmp_path))
    assert not same.labels and [len(group) for group in same.repeated] == [2]


def test_files_whose_size_occurs_once_are_not_opened(tmp_path, monkeypatch):
    for name, size in (("a/0.jpg", 1000), ("a/1.jpg", 1001), ("b/2.jpg", 1002), ("b/3.jpg", 1001)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes([size % 256]) * size)
    opened = []
    glance = content._glance
    monkeypatch.setattr(content, "_glance", lambda source: opened.append(source.name) or glance(source))
    assert len(same_pictures(read_folder(tmp_path)).labels) == 1
    assert opened == ["1.jpg", "3.jpg"]


def test_registered_data_and_arrays_are_left_as_they_are():
    world = worlds.load("mini/clothing")
    assert distinct(world) is world
    black = np.zeros((4, 4, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(distinct(label_images([black] * 4, ["a", "a", "b", "b"])).train) == 4


def photo(seed, size=(120, 90)):
    """Smooth noise, as photos are."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def test_pictures_saved_again_or_shrunk_are_nearly_the_same(tmp_path):
    for split, name, image, options in (
        ("train", "a/1.png", photo(1), {}),
        ("train", "a/2.png", photo(2), {}),
        ("train", "b/1.png", photo(3), {}),
        ("test", "a/1.jpg", photo(1), {"quality": 40}),
        ("test", "b/1.png", photo(3, (60, 45)), {}),
        ("test", "b/2.png", photo(4), {}),
        ("test", "b/black.png", Image.new("RGB", (9, 9)), {}),
        ("test", "b/white.png", Image.new("RGB", (9, 9), "white"), {}),
    ):
        path = tmp_path / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **options)
    copied(tmp_path, ("train/a/2.png", "train/a/copy.png"))  # the very same is told elsewhere
    steps = []
    pairs = near_pictures(read_folder(tmp_path), step=lambda done, total: steps.append((done, total)))
    assert [(one.split, one.record.source.name, two.split, two.record.source.name) for one, two in pairs] == [
        ("train", "1.png", "test", "1.jpg"),
        ("train", "1.png", "test", "1.png"),
    ]
    assert steps[-1] == (8, 8)
    hashes = [difference_hash(photo(seed)) for seed in range(20)]
    apart = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(apart) > 8


def test_own_data_are_checked(tmp_path):
    put(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/2.png", "test/b/2.png", "train/a/x.txt")
    copied(tmp_path, ("train/a/1.png", "test/a/3.png"))
    report = check_own(str(tmp_path))
    assert report.usable and report.classes == 2 and report.expected_classes is None
    assert {split: counts.present for split, counts in report.splits.items()} == {"train": 2, "test": 3}
    assert report.other_files == 1 and ["several splits" in note for note in report.notes] == [True]
    (tmp_path / "train" / "b" / "1.png").write_bytes(b"cut")
    copied(tmp_path, ("train/a/1.png", "test/b/3.png"))
    report = check_own(str(tmp_path))
    assert not report.usable and "two labels" in report.faults[0]
    assert ["b/1.png" in text for text in report.unreadable] == [True]
    report = check_own(str(tmp_path), decode=False)
    assert not report.unreadable and not report.decoded and report.faults
