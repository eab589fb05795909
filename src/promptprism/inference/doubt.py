"""How sure a classifier is of photos, in numbers that drift shows in."""

from collections.abc import Sequence
from dataclasses import replace

from promptprism.data.images import ImageSource
from promptprism.data.records import Dataset, Records
from promptprism.drift import LEAST, MOST, Reference
from promptprism.errors import PromptPrismError
from promptprism.inference.predictor import Predictor, Unread
from promptprism.methods import Classifier


def doubt(
    classifier: Classifier, photos: Sequence[ImageSource], unread: Unread | None = None
) -> tuple[list[float], list[float] | None]:
    """Probability of the leading class, and uncertainty of the fused opinion if there is one, of each photo.

    Probabilities are those before any calibration, which a reference from before it knows nothing of.

    Raises:
        PromptPrismError: no photo can be read, or without ``unread`` one of them.
    """
    classifier = replace(classifier, temperature=1.0)
    probability: list[float] = []
    uncertainty: list[float] = []
    for logits in Predictor(classifier).logits(photos, unread=unread):
        probability += classifier.probabilities(logits).amax(-1).tolist()
        if classifier.evidential:
            uncertainty += classifier.opinions(logits)[1].uncertainty.tolist()
    return probability, uncertainty if classifier.evidential else None


def held_out(dataset: Dataset, learned: Records) -> tuple[str, list[ImageSource]]:
    """Photos that were not learned from, and what they are: validation images, else what was not drawn.

    What was learned from would look surer than anything new.
    """
    drawn = {id(record.source) for record in learned}
    rest = dataset.val or [record for record in dataset.train if id(record.source) not in drawn]
    what = "validation photos" if dataset.val else "training photos that were not drawn"
    return what, [record.source for record in rest]


def reference_of(classifier: Classifier, what: str, photos: Sequence[ImageSource]) -> Reference | None:
    """Answers about photos that were not learned from, of at most 512 that lie evenly among them.

    None without at least 20 that can be read.
    """
    if len(photos) < LEAST:
        return None
    try:
        found = doubt(classifier, evenly(photos, MOST), {})
    except PromptPrismError:  # none can be read
        return None
    return Reference.of(what, *found) if len(found[0]) >= LEAST else None


def evenly(photos: Sequence[ImageSource], most: int) -> list[ImageSource]:
    """No more than so many of them, evenly from the first to the last."""
    count = min(most, len(photos))
    return [photos[place * len(photos) // count] for place in range(count)]
