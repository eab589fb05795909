"""Where the files of the field's data sets come from."""

import os
from dataclasses import dataclass

#: A copy on the Hugging Face hub of all but ImageNet, each in one archive with the canonical lists.
MIRROR = "zhengli97/prompt_learning_dataset"
#: Its state that is meant; what it holds can no longer change.
REVISION = "ceb3112337fb6e1bf71534e355ca5569b63f19a6"
#: Where the canonical split files and ImageNet's class names are linked from.
GUIDE = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"

_PACKED = (".zip", ".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True)
class Archive:
    """A whole data set in one file of the mirror.

    Attributes:
        file: its name.
        sha256: of its bytes, where it is known; else the hub states it for the revision.
    """

    file: str
    sha256: str = ""

    @property
    def url(self) -> str:
        """Where it is; ``HF_ENDPOINT`` names another hub."""
        hub = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        return f"{hub.rstrip('/')}/{MIRROR}/resolve/{REVISION}/{self.file}"


@dataclass(frozen=True)
class Original:
    """A file of the makers, or of CoOp, to be fetched by hand.

    Attributes:
        url: the file, or the page that has it.
        name: of the file, where the address does not end in it.
        folder: below the root, where it goes; None is that of the data set.
        then: what else is to be done.
    """

    url: str
    name: str = ""
    folder: str | None = None
    then: str = ""

    @property
    def file(self) -> str:
        """Name of the file."""
        return self.name or self.url.rpartition("/")[2]

    def place(self, folder: str) -> str:
        """Say where it goes, for a data set in this folder below the root."""
        where = folder if self.folder is None else self.folder
        verb = "unpack" if self.file.endswith(_PACKED) else "put"
        return f"{verb} in ROOT/{where}".rstrip("/") + (f", {self.then}" if self.then else "")


def drive(key: str, name: str) -> Original:
    """A file that CoOp's guide links on Google Drive."""
    return Original(f"https://drive.google.com/file/d/{key}/view", name)
