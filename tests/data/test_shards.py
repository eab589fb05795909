import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from promptprism.data.images import load_image
from promptprism.data.registry import load_data
from promptprism.data.shards import expand, read_shards
from promptprism.errors import PromptPrismError

NAMES = ["red fox", "wolf", "dog"]


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def shard(path, members, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def sample(number, label):
    return {f"s{number:03}.png": png(number), f"s{number:03}.cls": str(label).encode()}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "classnames.txt").write_text("\n".join(NAMES) + "\n")
    for i in range(4):
        extra = {f"s{2 * i:03}.json": b"{}", f"d/{i}.a.jpg": b"no sample"}
        shard(tmp_path / "test" / f"{i:06}.tar", sample(2 * i, i % 3) | extra | sample(2 * i + 1, 2))
    return tmp_path / "test"


def test_samples_in_the_order_of_the_shards(folder):
    data = load_data(f"wds:{folder}/{{000000..000003}}.tar")
    assert data.class_names == tuple(NAMES) and not data.train and data.evaluation == data.test
    assert [record.label for record in data.test] == [0, 2, 1, 2, 2, 2, 0, 2]
    assert [np.asarray(load_image(record.source))[0, 0, 0] for record in data.test] == list(range(8))
    source = data.test[3].source
    assert source.key == "000001.tar/s003.png" and str(source) == f"{folder}/000001.tar: s003.png"
    one = load_data(f"wds:{folder}/*2.tar")
    assert [record.source for record in one.test] == [record.source for record in data.test[4:6]]


def test_images_are_read_when_they_are_needed(folder):
    data = read_shards(f"{folder}/000000.tar")
    (folder / "000000.tar").unlink()
    with pytest.raises(PromptPrismError, match=r"no such image: '.*000000\.tar: s000\.png'"):
        load_image(data.test[0].source)


def test_labels_may_be_names(tmp_path):
    path = shard(tmp_path / "a.tar", sample(1, "wolf") | sample(2, "red fox"))
    data = load_data(f"wds:{path}")
    assert data.class_names == ("red fox", "wolf") and [r.label for r in data.test] == [1, 0]


def test_braces():
    assert expand("a{08..11}.tar") == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert expand("{0..1}-{0..1}") == ["0-0", "0-1", "1-0", "1-1"] and expand("a.tar") == ["a.tar"]


def test_missing_shards_are_counted(folder):
    with pytest.raises(
        PromptPrismError, match=r"2 of 6 shards of .* not there, first: '.*4\.tar', '.*5\.tar'"
    ):
        read_shards(f"{folder}/{{000000..000005}}.tar")
    with pytest.raises(PromptPrismError, match="no shard is like"):
        read_shards(f"{folder}/x*.tar")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({}, "no samples in"),
        ({"a.png": png(1)}, "1 samples of shard .* are not whole: 'a' has no label"),
        ({"a.cls": b"1"}, "'a' has no image"),
        (sample(1, 0), "labels of .* are numbers without names: put classnames.txt beside the shards"),
    ],
)
def test_bad_samples(tmp_path, members, words):
    with pytest.raises(PromptPrismError, match=words):
        read_shards(str(shard(tmp_path / "deep" / "er" / "a.tar", members)))


def test_labels_beyond_the_names(folder):
    shard(folder / "b.tar", sample(1, 3))
    with pytest.raises(PromptPrismError, match=r"s001.png' has label 3, but classnames.txt has 3 names"):
        read_shards(f"{folder}/b.tar")


def test_compressed_and_cut_shards(tmp_path):
    path = shard(tmp_path / "a.tar", sample(1, "x"), "w:gz")
    with pytest.raises(PromptPrismError, match=r"cannot read shard .*a\.tar.* not compressed"):
        read_shards(str(path))
    path = shard(tmp_path / "b.tar", {"a.png": png(1) * 50, "a.cls": b"x"})
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(PromptPrismError, match=r"cannot read shard .*b\.tar"):
        read_shards(str(path))


def test_a_folder_of_shards(folder):
    data = load_data(f"wds:{folder}")
    assert [record.label for record in data.test] == [0, 2, 1, 2, 2, 2, 0, 2]
    with pytest.raises(PromptPrismError, match=r"has no shards: their names must end in \.tar"):
        read_shards(str(folder.parent))


def test_a_dot_in_a_key_is_named(tmp_path):
    path = shard(tmp_path / "a.tar", {"x/shelf 2.0 0.jpg": png(1), "x/shelf 2.0 0.cls": b"fox"})
    with pytest.raises(
        PromptPrismError,
        match=r"member 'x/shelf 2\.0 0\.cls' of .*, so this is 'shelf 2' and a field '0 0\.cls'",
    ):
        read_shards(str(path))


def test_labels_below_zero_are_named(folder):
    shard(folder / "b.tar", sample(1, 0) | sample(2, -1))
    with pytest.raises(PromptPrismError, match=r"b\.tar: s002\.png' has label -1, which is no class"):
        read_shards(f"{folder}/b.tar")


@pytest.mark.parametrize("pattern", ["{0..999999999}", "{1..0}", "{0..999}-{0..999}", f"{{0..{'9' * 5000}}}"])
def test_hostile_counts_of_shards(pattern):
    with pytest.raises(PromptPrismError, match=r"shards: name 1 to 100,000"):
        read_shards(pattern + ".tar")
