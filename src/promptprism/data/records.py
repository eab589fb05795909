"""What a data set is: labelled images in splits, the names of the classes, and the phrase around a name."""

from collections import Counter
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

from promptprism.data.images import ImageSource
from promptprism.data.names import DEFAULT_PHRASE, LabelSpace
from promptprism.errors import PromptPrismError


@dataclass(frozen=True, eq=False)
class Record:
    """One labelled image.

    Attributes:
        source: what `promptprism.data.images.load_image` takes; nothing is decoded before it is needed.
        label: place of the image's class in the data set's class names.
        weight: how much it counts in learning beside others; 2 is as if it were there twice.
    """

    source: ImageSource
    label: int
    weight: float = 1.0


Records = tuple[Record, ...]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images in splits.

    Attributes:
        name: registered name, or the path it was read from.
        class_names: one name per label, as the user wrote it.
        phrase: hand-crafted text with one ``{}`` for the class name.
        train: images to learn from.
        val: images for choosing settings; never used for learning.
        test: images to score on; empty if the data has no test split.
        skipped: files that lay among the images and are none.
        folder: what the paths of few-shot lists are relative to; None if the images are no files below one.
    """

    name: str
    class_names: tuple[str, ...]
    train: Records = ()
    val: Records = ()
    test: Records = ()
    phrase: str = DEFAULT_PHRASE
    skipped: tuple[Path, ...] = ()
    folder: Path | None = None

    def __post_init__(self) -> None:
        for split in ("train", "val", "test"):
            object.__setattr__(self, split, tuple(getattr(self, split)))
        for record in (*self.train, *self.val, *self.test):
            if not (isinstance(record, Record) and isinstance(record.label, Integral)):
                raise PromptPrismError(
                    f"data set '{self.name}' holds {record!r:.200}: it must be a Record whose label is the "
                    "place of its class in class_names"
                )
            if not 0 <= record.label < len(self.class_names):
                raise PromptPrismError(
                    f"label {record.label} of {record.source} in data set '{self.name}' has no class name: "
                    f"labels must lie in 0..{len(self.class_names) - 1}"
                )

    @property
    def label_space(self) -> LabelSpace:
        """Class names and phrase.

        Raises:
            PromptPrismError: no prompt can be made of them.
        """
        return LabelSpace(self.class_names, self.phrase)

    @property
    def evaluation(self) -> Records:
        """The images to score on: the test split, or every image where there is no test split."""
        return self.test or (*self.train, *self.val)

    def counts(self, records: Records) -> dict[str, int]:
        """Number of images of each class, classes without any included."""
        seen = Counter(record.label for record in records)
        return {name: seen[label] for label, name in enumerate(self.class_names)}
