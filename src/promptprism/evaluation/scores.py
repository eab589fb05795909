"""All that `promptprism evaluate` says of an adapter and data: what it had seen, other classes, mistakes."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from promptprism.adapter import DataSummary
from promptprism.data.batches import labels_of
from promptprism.data.content import picture_id
from promptprism.data.records import Record
from promptprism.evaluation.evaluate import Evaluation, all_logits, check_scored, summarize
from promptprism.evaluation.metrics import predictions
from promptprism.evaluation.mistakes import class_rows, confused, confusion, worst_mistakes
from promptprism.inference.predictor import Predictor
from promptprism.methods import Classifier
from promptprism.provenance import Meter, Scored


@dataclass(frozen=True)
class Scores:
    """What was found.

    Attributes:
        result: on all images.
        learned_from: how many of them had been learned from; None if that is not known.
        held_out: on the others, where some had been learned from and some not.
        mistakes: ``confusion`` [K, K], ``by_class``, ``confused`` and ``mistakes``, as JSON has them.
    """

    result: Evaluation
    learned_from: int | None
    held_out: Evaluation | None
    mistakes: dict[str, Any]

    def scored(self, split: str) -> Scored:
        """The line that goes into an adapter's card."""
        return Scored(
            data=self.result.data,
            split=split,
            images=self.result.images,
            learned_from=self.learned_from,
            accuracy=self.result.accuracy,
            ece=self.result.metrics["cal/ece"],
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def score(
    classifier: Classifier,
    records: Sequence[Record],
    data: str,
    learned: DataSummary | None,
    others: Sequence[Record] = (),
) -> Scores:
    """Score a classifier.

    Args:
        classifier: of K classes.
        records: images, with labels into its class names.
        data: name of the data.
        learned: what it learned from.
        others: images of other classes, whose labels do not count; adds ``ood/...`` to the metrics.

    Raises:
        PromptPrismError: as `evaluate` does.
    """
    names, predictor = classifier.space.names, Predictor(classifier)
    check_scored(records, data, len(names))
    strange = all_logits(predictor, others) if others else None
    meter = Meter(classifier.backbone.device)
    logits = all_logits(predictor, records)
    shift = None if strange is None else (logits, strange)
    result = summarize(classifier, logits, records, data, meter, shift=shift)
    learned_from = 0 if learned is None else None
    held_out: Evaluation | None = None
    if learned and learned.seen:
        new = [place for place, of in enumerate(records) if picture_id(of.source) not in learned.seen]
        learned_from = len(records) - len(new)
        if learned_from and new:
            part = [records[place] for place in new]
            held_out = summarize(classifier, logits[:, new], part, data, Meter(classifier.backbone.device))
    _, final = predictions(classifier, logits)
    labels = labels_of(records)
    matrix = confusion(final.answer, labels, len(names))
    wrong = worst_mistakes(final.probabilities, labels, names)
    mistakes = {
        "by_class": class_rows(matrix, names),
        "confusion": matrix.tolist(),
        "confused": confused(matrix, names),
        "mistakes": [{"image": str(records[one["place"]].source), **one} for one in wrong],
    }
    return Scores(result, learned_from, held_out, mistakes)
