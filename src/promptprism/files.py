"""Files that are whole or not there: written under a temporary name, then renamed. Read are only files."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import cast

import safetensors
import safetensors.torch
from torch import Tensor

from promptprism.errors import PromptPrismError

_NO_FILES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_regular(path: Path) -> int:
    """Refuse what only looks like a file before it is opened: a pipe hangs, a device may never end.

    Returns:
        the file's size in bytes.

    Raises:
        PromptPrismError: it is a pipe, a socket or a device.
        OSError: it is not there, is a folder, or must not be looked at.
    """
    status = path.stat()
    if what := _NO_FILES.get(stat.S_IFMT(status.st_mode)):
        raise PromptPrismError(f"'{path}' is {what}, not a file: copy what it gives into a file first")
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return status.st_size


def is_there(path: str | Path) -> bool:
    """Whether there is anything; a name that no file can have is not there, where `Path.exists` raises."""
    return os.path.exists(path)  # noqa: PTH110


def check_place(path: Path) -> None:
    """Find out before long work starts whether a file or folder can be written at a path.

    Raises:
        PromptPrismError: it cannot.
    """
    if path.is_dir():
        raise PromptPrismError(f"cannot write '{path}': it is a folder; name a file")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=parent) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise PromptPrismError(
            f"cannot write '{path}' ({error.strerror or error}): check the permissions and free space of "
            f"'{parent}', or choose another place"
        ) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, never meets half of it.

    Raises:
        PromptPrismError: the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise PromptPrismError(
            f"cannot write '{path}' ({error.strerror or error}): check its permissions and the free "
            "space, or "
            "choose another place"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors; see `write_bytes`."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, safetensors.torch.save(plain, metadata))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: tensors by name, and its metadata.

    Raises:
        PromptPrismError: the file is missing, cut short, or no safetensors file.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: cast(Tensor, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except FileNotFoundError as error:
        raise PromptPrismError(f"no such file: '{path}'") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise PromptPrismError(
            f"'{path}' is cut short or is no safetensors file ({error}): copy or make it again"
        ) from error
