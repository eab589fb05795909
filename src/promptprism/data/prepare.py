"""Get a data set of the field onto this disk, in its layout, from the mirror that has it."""

import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from promptprism.data.fetch import download
from promptprism.data.published import PublishedDataset
from promptprism.errors import PromptPrismError
from promptprism.files import sha256_of

#: Takes what is done ("fetching", "unpacking"), how much of it, and how much there is.
Step = Callable[[str, int, int], None]

# Others' few-shot draws are pickles with paths of their machine; the rest is what a Mac leaves in archives.
_LEFT_OUT = (".pkl", ".pickle", ".DS_Store")


def is_whole(dataset: PublishedDataset, root: Path) -> bool:
    """Whether the data set is there, and all its listed images."""
    try:
        return not dataset.faults(dataset.lists(root), root)
    except PromptPrismError:
        return False


def prepare(dataset: PublishedDataset, root: Path, step: Step = lambda *_: None) -> Path:
    """Download a data set's archive, unless it lies in the root already, and unpack it there.

    A call that was stopped goes on where it was: with the next byte, or the next file.

    Args:
        dataset: the data set.
        root: the folder that holds the data sets' folders.
        step: called with what is done, how much of it, and how much there is.

    Returns:
        The archive, which may go now.

    Raises:
        UnreachableError: no network, or the mirror has it no longer.
        PromptPrismError: the mirror has no such data set, or an archive that is not what it should be.
    """
    archive = dataset.archive
    if archive is None:
        raise PromptPrismError(f"{dataset.title} ({dataset.name}) must be fetched by hand")
    path = root / archive.file
    if not path.exists():
        download(archive.url, path, archive.sha256, lambda done, total: step("fetching", done, total))
    elif archive.sha256 and sha256_of(path) != archive.sha256:
        raise PromptPrismError(
            f"'{path}' is not the archive that the mirror has, its SHA-256 is another: remove it and try "
            "again"
        )
    _unpack(path, dataset, root, step)
    return path


def by_hand(dataset: PublishedDataset) -> list[dict[str, str]]:
    """What to fetch without this program: file, address, and what to do with it below the root."""
    rows = [
        {"file": file.file, "url": file.url, "to_do": file.place(dataset.folder)}
        for file in dataset.originals
    ]
    if archive := dataset.archive:
        to_do = "put in ROOT and run this command again; then the others are not needed"
        rows.insert(0, {"file": archive.file, "url": archive.url, "to_do": to_do})
    return rows


def _unpack(path: Path, dataset: PublishedDataset, root: Path, step: Step) -> None:
    try:
        with zipfile.ZipFile(path) as packed:
            members = [
                member
                for member in packed.infolist()
                if not member.is_dir()
                and not member.filename.endswith(_LEFT_OUT)
                and not member.filename.startswith("__MACOSX/")
            ]
            above = _above(members, dataset, path)
            for done, member in enumerate(members, 1):
                if member.filename.startswith(above):
                    _place(packed, member, root / dataset.folder, member.filename[len(above) :])
                step("unpacking", done, len(members))
    except RuntimeError as error:  # NotImplementedError is one
        raise PromptPrismError(
            f"archive '{path}' is encrypted, or packed in a way that is not known ({error}): unpack it by "
            "hand, or fetch another"
        ) from error
    except OSError as error:
        raise PromptPrismError(
            f"cannot unpack '{path}' ({error.strerror or error}): check permissions and free space; the same "
            "command goes on from there"
        ) from error
    except PromptPrismError:
        raise
    except Exception as error:  # zipfile raises nearly anything on damaged bytes
        raise PromptPrismError(f"archive '{path}' is damaged ({error}): remove it and try again") from error


def _above(members: list[zipfile.ZipInfo], dataset: PublishedDataset, path: Path) -> str:
    """The folders of the archive around what lies in the data set's folder."""
    wanted = dataset.layout.needs[0]
    for member in members:
        before, found, after = f"/{member.filename}".partition(f"/{wanted}")
        if found and after[:1] in ("", "/"):
            return f"{before}/".lstrip("/")
    raise PromptPrismError(f"archive '{path}' has no '{wanted}': it is not that of {dataset.title}")


def _place(packed: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path, below: str) -> None:
    parts = PurePosixPath(below).parts
    # Windows paths too: a drive, or backslashes.
    if ".." in parts or PurePosixPath(below).is_absolute() or re.search(r"[\\\0]|^\w:", below):
        raise PromptPrismError(f"archive '{packed.filename}' would write '{below}', outside of '{folder}'")
    target = folder.joinpath(*parts)
    if target.is_file() and target.stat().st_size == member.file_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    with packed.open(member) as source, partial.open("wb") as file:
        shutil.copyfileobj(source, file)
    partial.replace(target)
