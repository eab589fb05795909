"""WebDataset shards for evaluation: tar files whose members ``KEY.jpg`` and ``KEY.cls`` make a sample."""

import glob
import math
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from promptprism.data.images import IMAGE_SUFFIXES
from promptprism.data.layouts import CLASS_NAMES, read_lines
from promptprism.data.reading import Reading
from promptprism.data.records import Dataset, Record
from promptprism.data.stores import found_like, is_remote, joined, local
from promptprism.errors import PromptPrismError
from promptprism.files import is_there

#: The largest published sets have a tenth of that.
MOST_SHARDS = 100_000
# Bytes of a label.
_LONGEST = 4096


@dataclass(frozen=True)
class Member:
    """An image in a shard, read when it is needed.

    Attributes:
        shard: path of the tar file.
        name: of the member.
        offset: of its first byte in the shard.
        size: in bytes.
        copy: where the shard can be read, if not by its own name.
    """

    shard: str
    name: str
    offset: int
    size: int
    copy: Path | None = None

    @property
    def key(self) -> str:
        """What tells it from other images, on every machine."""
        return f"{Path(self.shard).name}/{self.name}"

    def content(self) -> bytes:
        """Read the image file."""
        with (self.copy or Path(self.shard)).open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def __str__(self) -> str:
        return f"{self.shard}: {self.name}"


def read_shards(pattern: str, reading: Reading | None = None) -> Dataset:
    """List the samples of WebDataset shards as test images; nothing is unpacked, and no image read.

    A sample's label, its member ``.cls``, is the name of its class, or a number into the names in
    ``classnames.txt`` beside the shards or in the folder above: one per line, label 0 first.

    Args:
        pattern: path of a shard, of several as in ``shards-{000..003}.tar`` or ``shards/*.tar``, or of a
            folder of shards.
        reading: shards have neither splits nor columns to name.

    Raises:
        PromptPrismError: a shard is missing, compressed or damaged, a sample lacks its image or label, or
            labels have no names.
    """
    if reading and reading.splits:
        raise PromptPrismError(
            f"shards have no splits: give the shards to score on alone, not '{pattern}' and --split"
        )
    paths = _shards(pattern)
    samples = [sample for path in paths for sample in _samples(path)]
    if not samples:
        raise PromptPrismError(f"no samples in '{pattern}': members must come as KEY.jpg and KEY.cls")
    numbered = all(label.lstrip("-").isdecimal() for _, label in samples)
    if numbered and (below := next((sample for sample in samples if sample[1].startswith("-")), None)):
        raise PromptPrismError(
            f"'{below[0]}' has label {below[1]}, which is no class: labels count from 0. Leave samples "
            "without a label out of the shards"
        )
    names = _class_names(paths[0]) if numbered else tuple(sorted({label for _, label in samples}))
    if names is None:
        raise PromptPrismError(
            f"the labels of '{pattern}' are numbers without names: put {CLASS_NAMES} beside the shards or in "
            "the folder above, one class name per line, that of label 0 first"
        )
    places = {name: place for place, name in enumerate(names)}
    records = []
    for member, label in samples:
        place = int(label) if numbered else places[label]
        if place >= len(names):
            raise PromptPrismError(
                f"'{member}' has label {place}, but {CLASS_NAMES} has {len(names)} names: it is of other data"
            )
        records.append(Record(member, place))
    return Dataset(f"wds:{pattern}", names, test=tuple(records))


def _shards(pattern: str) -> list[Path]:
    if is_there(pattern) and Path(pattern).is_dir():
        paths = sorted(Path(pattern).glob("*.tar"))
        if not paths:
            raise PromptPrismError(f"folder '{pattern}' has no shards: their names must end in .tar")
        return paths
    paths = [Path(path) for path in expand(pattern)]
    missing = [str(path) for path in paths if not is_there(path) or not path.is_file()]
    if not paths:
        raise PromptPrismError(f"no shard is like '{pattern}'. Check the path and its spelling")
    if missing:
        raise PromptPrismError(
            f"{len(missing)} of {len(paths)} shards of '{pattern}' are not there, first: "
            f"{', '.join(map(repr, missing[:5]))}. Shards must be files on this machine; those of an object "
            "store are read by predict --engine"
        )
    return paths


def expand(pattern: str) -> list[str]:
    """Write out ``{000..003}``, in order, then wild cards.

    Raises:
        PromptPrismError: that is none, or more than there ever are.
    """
    ranges = re.findall(r"\{(\d+)\.\.(\d+)\}", pattern)
    count = math.prod(max(0, int(last[:20]) - int(first[:20]) + 1) for first, last in ranges)
    if not 0 < count <= MOST_SHARDS:
        raise PromptPrismError(
            f"'{pattern}' stands for {count:,} shards: name 1 to {MOST_SHARDS:,}, the lower number first"
        )
    if found := re.search(r"\{(\d+)\.\.(\d+)\}", pattern):
        first, last = found.groups()
        numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
        before, after = pattern[: found.start()], pattern[found.end() :]
        return [path for number in numbers for path in expand(before + number + after)]
    return found_like(pattern) if glob.has_magic(pattern) else [pattern]


def shard_places(pattern: str) -> list[str]:
    """Paths or addresses of the shards that a pattern stands for; see `read_shards`.

    Whether shards of an object store are there shows when they are read.

    Raises:
        PromptPrismError: there is none, or one of this machine is missing.
    """
    if not is_remote(pattern):
        return [str(path) for path in _shards(str(local(pattern)))]
    places = expand(pattern if pattern.endswith(".tar") else joined(pattern, "*.tar"))
    if not places:
        raise PromptPrismError(f"no shard is like '{pattern}'. Check the address and its spelling")
    return places


def images_in(pattern: str) -> Iterator[Member]:
    """The images of shards, labelled or not, in their order; see `read_shards`.

    Raises:
        PromptPrismError: a shard is missing, compressed or damaged.
    """
    for path in _shards(pattern):
        yield from images_of(path, str(path))


def images_of(path: Path, shard: str) -> Iterator[Member]:
    """The images of a shard in their order.

    Args:
        path: where it can be read.
        shard: what it is called.

    Raises:
        PromptPrismError: it is missing, compressed or damaged; at its end, if that is missing.
    """
    copy = None if str(path) == shard else path
    with _opened(path, shard) as tar:
        for member in tar:
            if member.isreg() and Path(member.name).suffix.lower() in IMAGE_SUFFIXES:
                yield Member(shard, member.name, member.offset_data, member.size, copy)


@contextmanager
def _opened(path: Path, shard: str | None = None) -> Iterator[tarfile.TarFile]:
    """A shard whose members are gone through; of one that is cut short it is not silently the end."""
    try:
        with tarfile.open(path, "r:") as tar:
            yield tar
            # `tarfile` takes whatever is no header, and the end of the file, for the end of the archive.
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no end mark behind {len(tar.getmembers())} members")
    except (tarfile.TarError, OSError, UnicodeDecodeError) as error:
        raise PromptPrismError(
            f"cannot read shard '{shard or path}' ({error}): it must be a whole tar file that is not "
            "compressed"
        ) from error


def _samples(path: Path) -> Iterator[tuple[Member, str]]:
    images: dict[str, Member] = {}
    labels: dict[str, str] = {}
    with _opened(path) as shard:
        for member in shard:
            folder, slash, name = member.name.rpartition("/")
            key, _, kind = name.partition(".")
            kind, key = f".{kind.lower()}", folder + slash + key
            if not member.isreg():
                continue
            if kind in IMAGE_SUFFIXES:
                images[key] = Member(str(path), member.name, member.offset_data, member.size)
            elif kind == ".cls":
                content = shard.extractfile(member)
                labels[key] = content.read(_LONGEST).decode().strip() if content else ""
            elif kind.endswith(".cls"):
                raise PromptPrismError(
                    f"member '{member.name}' of shard '{path}' has a dot in its key: WebDataset ends a "
                    f"key at the first dot, so this is '{key[len(folder + slash) :]}' and a field "
                    f"'{kind[1:]}'. Rename the members before packing, with no dot but that of the ending"
                )
    if lonely := sorted(images.keys() ^ labels.keys()):
        lacks = "label (KEY.cls)" if lonely[0] in images else "image"
        raise PromptPrismError(
            f"{len(lonely)} samples of shard '{path}' are not whole: '{lonely[0]}' has no {lacks}"
        )
    yield from ((image, labels[key]) for key, image in images.items())


def _class_names(shard: Path) -> tuple[str, ...] | None:
    for folder in (shard.parent, shard.resolve().parent.parent):
        if (folder / CLASS_NAMES).is_file():
            return tuple(read_lines(folder / CLASS_NAMES))
    return None
