from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toys import picture

from promptprism.data.images import load_image
from promptprism.data.inputs import as_sources, label_images
from promptprism.errors import PromptPrismError

ARRAY = picture("red", 0)


@pytest.mark.parametrize(
    ("given", "count"),
    [
        (ARRAY, 1),
        (np.stack([ARRAY, ARRAY]), 2),
        (torch.from_numpy(ARRAY).permute(2, 0, 1), 1),
        (torch.from_numpy(ARRAY).permute(2, 0, 1).expand(3, -1, -1, -1), 3),
        (Image.fromarray(ARRAY), 1),
        ([ARRAY, Image.fromarray(ARRAY), torch.from_numpy(ARRAY).permute(2, 0, 1)], 3),
        ((ARRAY,), 1),
    ],
)
def test_all_that_holds_images_gives_the_same_pictures(given, count):
    sources = as_sources(given)
    assert len(sources) == count
    for source in sources:
        assert np.array_equal(np.asarray(load_image(source)), ARRAY)


def test_paths_alone_in_a_list_or_in_an_array():
    assert as_sources("a.png") == ["a.png"] and as_sources(Path("a.png")) == [Path("a.png")]
    assert as_sources(np.array(["a.png", "b.png"])) == ["a.png", "b.png"]
    assert as_sources([]) == []


def test_several_images_in_whatever_can_be_gone_through(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.png").touch()
    assert sorted(as_sources(tmp_path.glob("*.png"))) == [tmp_path / "a.png", tmp_path / "b.png"]
    assert as_sources({"a.png": 1, "b.png": 2}.keys()) == ["a.png", "b.png"]
    with pytest.raises(PromptPrismError, match="cannot take an image from bytes"):
        load_image(*as_sources(b"\xff\xd8"))


def test_a_tensor_that_is_no_image_is_named():
    with pytest.raises(PromptPrismError, match=r"\(3, 4, 4\).*float32.*uint8"):
        as_sources(torch.zeros(3, 4, 4))


def test_labels_are_names_or_indices():
    images = [ARRAY] * 3
    by_name = label_images(images, ["cat", "ant", "cat"])
    assert by_name.class_names == ("ant", "cat") and [r.label for r in by_name.train] == [1, 0, 1]
    for labels in ([1, 0, 1], np.array([1, 0, 1]), torch.tensor([1, 0, 1])):
        assert [r.label for r in label_images(images, labels, ["x", "y"]).train] == [1, 0, 1]
    ordered = label_images(images, np.array(["cat", "ant", "cat"]), ["cat", "bee", "ant"])
    assert [r.label for r in ordered.train] == [0, 2, 0]
    spelt = label_images(images, ["cafe\u0301", "Ant", "CAF\u00c9"], ["caf\u00e9", "ant"])
    assert spelt.class_names == ("caf\u00e9", "ant") and [r.label for r in spelt.train] == [0, 1, 0]
    for label in ("cat", 1, np.int64(1), torch.tensor(1)):
        assert label_images(ARRAY, label, ["ant", "cat"]).train[0].label == 1


@pytest.mark.parametrize(
    ("labels", "names", "word"),
    [
        (["a", "b"], None, "3 images but 2 labels"),
        ([0, 1, 0], None, "give class_names"),
        ([None] * 3, None, "3 of 3 labels are missing, first: label 0 is None"),
        (["a", "b", "c"], ["a", "b"], "label 'c' is none of the 2 class names"),
        (["a", "A", "c"], None, "'A' and 'a' read the same"),
        (["a", "b", "c"], "abc", "must be a list of at least one name, got 'abc'"),
        ([0, 1, 2], ["a", "b"], "label 2 "),
        ([0, "b", 0], ["a", "b"], "all class names or all indices"),
    ],
)
def test_labels_that_do_not_fit_are_named(labels, names, word):
    with pytest.raises(PromptPrismError, match=word):
        label_images([ARRAY] * 3, labels, names)
