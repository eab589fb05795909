import os
import socket
import stat
from pathlib import Path

import pytest
import safetensors.torch
import torch

from promptprism.errors import PromptPrismError
from promptprism.files import check_place, locked, read_tensors, write_bytes, write_tensors


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


def test_links_are_written_through_and_stay(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("old", "new"):
        (tmp_path / name).symlink_to(tmp_path / "there" / name)
    (tmp_path / "there" / "old").write_text("before")
    for name in ("old", "new"):
        check_place(tmp_path / name)
        write_bytes(tmp_path / name, b"after")
        assert (tmp_path / name).is_symlink() and (tmp_path / "there" / name).read_bytes() == b"after"
    assert len(list(tmp_path.iterdir())) == 3 and len(list((tmp_path / "there").iterdir())) == 2


@pytest.mark.skipif(os.name != "posix", reason="needs pipes and devices")
def test_pipes_and_devices_are_written_through_and_never_replaced(tmp_path):
    pipe, socket_file = tmp_path / "pipe", tmp_path / "socket"
    os.mkfifo(pipe)
    check_place(pipe)
    with pytest.raises(PromptPrismError, match=r"cannot write '.*pipe' \(No such device or address\)"):
        write_bytes(pipe, b"nobody reads")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_bytes(pipe, b"content")
        assert os.read(reader, 99) == b"content" and stat.S_ISFIFO(pipe.stat().st_mode)
    finally:
        os.close(reader)
    write_bytes(Path("/dev/null"), b"content")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(socket_file))
        for refuse in (check_place, lambda path: write_bytes(path, b"")):
            with pytest.raises(PromptPrismError, match="is a socket or a disk"):
                refuse(socket_file)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_device_is_said():
    with pytest.raises(PromptPrismError, match=r"cannot write '/dev/full' \(No space left on device\)"):
        write_bytes(Path("/dev/full"), b"content")


def test_a_name_that_no_file_can_have_is_refused_before_long_work(tmp_path):
    with pytest.raises(PromptPrismError, match="File name too long"):
        check_place(tmp_path / ("x" * 300))


def test_what_killed_runs_left_is_taken_away_and_what_others_write_is_not(tmp_path):
    dead, alive, other = (f".file.{pid}.partial" for pid in (999_999_999, os.getppid(), "elsewhere"))
    for name in (dead, alive, other, ".file2.999999999.partial"):
        (tmp_path / name).write_text("{ha")
    write_bytes(tmp_path / "file", b"content")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"file", alive, other, ".file2.999999999.partial"}


def test_a_lock_is_for_one_process(tmp_path):
    with locked(tmp_path / "lock") as first, locked(tmp_path / "lock") as second:
        assert (first, second) == (True, False)
    with locked(tmp_path / "lock") as later:
        assert later
    with pytest.raises(PermissionError, match="of the body"), locked(tmp_path / "lock"):
        raise PermissionError("of the body")


def test_tensors_carry_their_digest_and_others_are_read_unless_it_is_asked_for(tmp_path):
    tensors = {"a": torch.arange(6.0)}
    write_tensors(tmp_path / "file", tensors)
    content = (tmp_path / "file").read_bytes()
    damaged = bytearray(content)
    damaged[-1] ^= 1
    (tmp_path / "file").write_bytes(damaged)
    with pytest.raises(PromptPrismError, match="its SHA-256 is another"):
        read_tensors(tmp_path / "file")
    (tmp_path / "file").write_bytes(safetensors.torch.save(tensors))
    assert torch.equal(read_tensors(tmp_path / "file")[0]["a"], tensors["a"])
    with pytest.raises(PromptPrismError, match="its SHA-256 is another"):
        read_tensors(tmp_path / "file", sealed=True)
