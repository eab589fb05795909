"""Files that are whole or not there: written under a temporary name, then renamed. Read are only files."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from promptprism.errors import PromptPrismError

if TYPE_CHECKING:  # what reads images alone, such as `promptprism.runtime`, has no torch
    from torch import Tensor

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
    if os.path.isdir(path):  # noqa: PTH112 - says no of a name that no file can have
        raise PromptPrismError(f"cannot write '{path}': it is a folder; name a file")
    if _special(path):
        return
    target = _behind_links(path)
    parent = next(folder for folder in target.parents if is_there(folder))
    try:
        with suppress(FileNotFoundError):
            _partial(target).lstat()  # the name may be too long
        with tempfile.TemporaryFile(dir=parent) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise PromptPrismError(
            f"cannot write '{path}' ({error.strerror or error}): check the permissions and free space of "
            f"'{parent}', or choose another place"
        ) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, never meets half of it.

    A link stays, and what it leads to is written; so is a pipe that somebody reads, or a terminal.

    Raises:
        PromptPrismError: the place cannot be written.
    """
    try:
        if _special(path):
            # Without waiting: a pipe that nobody reads would take the results of hours with it.
            descriptor = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0))
            with os.fdopen(descriptor, "wb") as file:
                if hasattr(os, "O_NONBLOCK"):
                    os.set_blocking(descriptor, True)
                file.write(content)
            return
        target = _behind_links(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary(target) as partial:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
    except OSError as error:
        raise PromptPrismError(
            f"cannot write '{path}' ({error.strerror or error}): check its permissions and the free "
            "space, or choose another place"
        ) from error


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A name beside a path for what is not whole yet; what is left there is taken away, now and afterwards.

    So is what runs that were killed have left of the same path.
    """
    for rest in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        if not _runs(rest.name.split(".")[-2]):
            remove(rest)
    partial = _partial(path)
    try:
        yield partial
    finally:
        remove(partial)


def remove(path: Path) -> None:
    """Take a file or a folder away, as far as that can be done."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, wait: float = 0.0) -> Iterator[bool]:
    """Hold a lock file, unless another process holds it for longer than ``wait`` seconds; whether it is ours.

    The operating system takes a lock from a process that dies.

    Raises:
        PromptPrismError: the lock cannot be used, for instance one that belongs to another user.
    """
    import sqlite3  # few who open an adapter lock anything

    with ExitStack() as held:
        try:
            # SQLite would let everybody in where nobody may write.
            if path.exists() and not os.access(path, os.W_OK):
                raise PermissionError("it is another user's, or read-only")
            lock = held.enter_context(closing(sqlite3.connect(path, timeout=wait, isolation_level=None)))
            lock.execute("BEGIN EXCLUSIVE")
            mine = True
        except (sqlite3.Error, OSError) as error:
            mine = False
            if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY:
                raise PromptPrismError(
                    f"cannot use the lock '{path}' ({error}): check its permissions, free some space, or "
                    "delete it; it holds nothing"
                ) from error
        yield mine


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def _special(path: Path) -> bool:
    """Whether it is a pipe or a character device, which is written through.

    Raises:
        PromptPrismError: it is a socket or a disk, which never is.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    if stat.S_ISSOCK(mode) or stat.S_ISBLK(mode):
        raise PromptPrismError(f"cannot write '{path}': it is a socket or a disk; name a file")
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _behind_links(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _runs(pid: str) -> bool:
    """Whether another process of this number runs; where that cannot be asked, it is taken to."""
    if not pid.isdecimal() or os.name != "posix":
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return int(pid) != os.getpid()


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode())


def sha256_of(content: bytes | Path) -> str:
    """SHA-256 of bytes, or of a file."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Stands in a file of tensors where its digest goes.
_SHA256, _BLANK = "sha256", b"0" * 64


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors, whose metadata hold the file's SHA-256; see `write_bytes`.

    It is that of the bytes with 64 zeros in its own place.
    """
    import safetensors.torch

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = safetensors.torch.save(plain, {**(metadata or {}), _SHA256: _BLANK.decode()})
    place = content.index(_BLANK, content.index(f'"{_SHA256}":"'.encode()))
    digest = sha256_of(content).encode()
    write_bytes(path, content[:place] + digest + content[place + len(digest) :])


def read_tensors(path: Path, sealed: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: tensors by name, and its metadata.

    Args:
        path: the file.
        sealed: refuse a file without SHA-256, as other programs write it.

    Raises:
        PromptPrismError: the file is missing, cut short, no safetensors file, or not as it was written.
    """
    import safetensors.torch

    try:
        check_regular(path)
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata: dict[str, str] = header.get("__metadata__") or {}
        said = metadata.pop(_SHA256, None)
        if said != sha256_of(content.replace(said.encode(), _BLANK, 1)) if said else sealed:
            raise PromptPrismError(
                f"'{path}' is cut short or damaged, its SHA-256 is another: copy or make it again"
            )
        return safetensors.torch.load(content), metadata
    except FileNotFoundError as error:
        raise PromptPrismError(f"no such file: '{path}'") from error
    except PromptPrismError:
        raise
    except Exception as error:
        raise PromptPrismError(
            f"'{path}' is cut short or is no safetensors file ({error}): copy or make it again"
        ) from error
