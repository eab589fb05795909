import pytest
import torch

from promptprism.errors import PromptPrismError
from promptprism.files import read_tensors, write_bytes, write_tensors


def test_tensors_and_metadata_come_back(tmp_path):
    tensors = {"a": torch.randn(3, 4).T, "b": torch.arange(5)}
    write_tensors(tmp_path / "new" / "file", tensors, {"who": "me"})
    found, metadata = read_tensors(tmp_path / "new" / "file")
    assert metadata == {"who": "me"}
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_writing_replaces_the_whole_file_and_leaves_no_other(tmp_path):
    write_bytes(tmp_path / "file", b"long content")
    write_bytes(tmp_path / "file", b"short")
    assert (tmp_path / "file").read_bytes() == b"short"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PromptPrismError, match=r"cannot write '.*inside'"):
        write_bytes(tmp_path / "file" / "inside", b"content")


@pytest.mark.parametrize("content", [b"", b"x" * 40, (8).to_bytes(8, "little") + b"{}"])
def test_no_safetensors_file_is_named(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(PromptPrismError, match="file' is cut short or is no safetensors"):
        read_tensors(tmp_path / "file")
    with pytest.raises(PromptPrismError, match="no such file"):
        read_tensors(tmp_path / "other")
