"""Files of object stores, such as ``s3://bucket/name``, by fsspec; and of this machine, by the same words."""

import glob
import importlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from promptprism.errors import PromptPrismError
from promptprism.files import check_place, temporary

_REFUSED = ("credential", "permission", "forbidden", "accessdenied", "authentication", "unauthorized")
_HERE = "file://"


def is_remote(place: str) -> bool:
    """Whether a place is named by an address, of a store that is no folder of this machine."""
    return "://" in place and not place.startswith(_HERE)


def local(place: str) -> Path:
    """A place of this machine as a path."""
    return Path(place.removeprefix(_HERE))


def absolute(place: str) -> str:
    """A place as every process names it, wherever it works."""
    return place if is_remote(place) else os.path.abspath(local(place))  # noqa: PTH100 - links stay


def joined(folder: str, *names: str) -> str:
    """A place in a folder."""
    return "/".join([folder.rstrip("/") or folder, *names])


@contextmanager
def _store(place: str) -> Iterator[tuple[Any, str]]:
    """The file system of an address, and the path in it.

    Raises:
        PromptPrismError: the driver is missing, or what is done with it fails; it names the place and why.
    """
    try:
        yield importlib.import_module("fsspec.core").url_to_fs(place)
    except ImportError as error:
        raise PromptPrismError(f"'{place}' cannot be opened, its driver is missing: {error}") from error
    except ValueError as error:
        raise PromptPrismError(
            f"'{place}' cannot be opened ({error}): give a path, or the address of a store that fsspec "
            "knows, such as s3://bucket/folder"
        ) from error
    except FileNotFoundError as error:
        raise PromptPrismError(f"'{place}' is not there. Check the address and its spelling") from error
    except PromptPrismError:
        raise
    except Exception as error:  # drivers raise what their makers' libraries do
        kind = f"{type(error).__name__} {error}".lower().replace(" ", "")
        remedy = (
            "give this machine credentials that may read and write it (for s3 AWS_PROFILE, or "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
            if any(word in kind for word in _REFUSED)
            else "check the address, and that the store can be reached from here"
        )
        raise PromptPrismError(f"'{place}' ({type(error).__name__}: {error}): {remedy}") from error


def found_like(pattern: str) -> list[str]:
    """Addresses or paths that are like a pattern with wild cards, sorted."""
    if not is_remote(pattern):
        # Path.glob takes no absolute patterns.
        return sorted(glob.glob(pattern))  # noqa: PTH207
    with _store(pattern) as (store, path):
        return sorted(store.unstrip_protocol(name) for name in store.glob(path))


def names_in(folder: str) -> list[str]:
    """Names of what lies in a folder; none where there is no folder."""
    if not is_remote(folder):
        return sorted(os.listdir(local(folder))) if local(folder).is_dir() else []  # noqa: PTH208
    with _store(folder) as (store, path):
        store.invalidate_cache()
        if not store.exists(path):
            return []
        return sorted(name.rstrip("/").rpartition("/")[2] for name in store.ls(path, detail=False))


def size_of(place: str) -> int:
    """Bytes of a file."""
    if not is_remote(place):
        return local(place).stat().st_size
    with _store(place) as (store, path):
        return int(store.info(path)["size"])


@contextmanager
def opened(place: str) -> Iterator[BinaryIO]:
    """A file to read parts of, where it lies."""
    if not is_remote(place):
        with local(place).open("rb") as file:
            yield file
        return
    with _store(place) as (store, path):
        found = store.open(path, "rb")
    with found:
        yield found


@contextmanager
def fetched(place: str) -> Iterator[Path]:
    """A file as one of this machine: itself, or a copy for as long as it is needed.

    One long read is what stores are fastest at, and tells at once whether all of it is there.
    """
    if not is_remote(place):
        yield local(place)
        return
    with tempfile.TemporaryDirectory(prefix="promptprism-") as folder:
        copy = Path(folder, "copy")
        with _store(place) as (store, path):
            store.get_file(path, str(copy))
        yield copy


@contextmanager
def written(place: str) -> Iterator[Path]:
    """A path to write a file to, that is put in its place, whole, when this ends without an error.

    On this machine it is renamed; a store shows an object when all of it has come.
    """
    if is_remote(place):
        with tempfile.TemporaryDirectory(prefix="promptprism-") as folder:
            file = Path(folder, "file")
            yield file
            with _store(place) as (store, path):
                try:
                    store.put_file(str(file), path)
                except FileNotFoundError:  # object stores have no folders, others want them made
                    store.makedirs(path.rpartition("/")[0], exist_ok=True)
                    store.put_file(str(file), path)
        return
    target = local(place)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary(target) as partial:
            yield partial
            with partial.open("rb") as whole:
                os.fsync(whole.fileno())
            partial.replace(target)
    except OSError as error:
        raise PromptPrismError(
            f"cannot write '{target}' ({error.strerror or error}): check its permissions and the free space, "
            "or choose another place"
        ) from error


def check_folder(folder: str) -> None:
    """Find out before long work whether files can be written into a folder.

    Raises:
        PromptPrismError: it is a file, or nothing can be written there.
    """
    mark = joined(folder, ".promptprism-can-write")
    if is_remote(folder):
        with written(mark) as file:
            file.write_bytes(b"")
        with suppress(PromptPrismError), _store(mark) as (store, path):
            store.rm_file(path)  # who may write need not be let remove
        return
    if local(folder).exists() and not local(folder).is_dir():
        raise PromptPrismError(f"'{folder}' is a file: name a folder for the tables")
    check_place(local(mark))
