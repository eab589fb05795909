"""What a fitted model answers: classes, probabilities, opinions, scores, explanations."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from promptprism.adapter import DataSummary
from promptprism.data.content import picture_id
from promptprism.data.images import ImageSource
from promptprism.data.inputs import Images, Labels, as_dataset, as_sources, records_of_known
from promptprism.data.records import Dataset, Records
from promptprism.data.weights import Weights, check_weights
from promptprism.errors import NotFittedError, PromptPrismError
from promptprism.estimator.conventions import Conventions
from promptprism.evaluation.calibration import calibrate
from promptprism.evaluation.evaluate import Evaluation, evaluate
from promptprism.evidence import Opinion, Opinions
from promptprism.inference.conformal import Calibration, Score, sets_of
from promptprism.inference.early import EarlyOpinions, EarlyScore, check_early, fused_so_far, lead, margin_for
from promptprism.inference.explain import Explanation, explain
from promptprism.inference.predictor import Predictor, Unread
from promptprism.methods import Classifier


class Fitted(Conventions):
    """Asks the classifier that `fit` has made."""

    classes_: NDArray[np.str_]
    classifier_: Classifier
    data_: DataSummary | None
    scores_: dict[str, dict[str, float]]
    calibration_: Calibration | None

    def predict(
        self, images: Images, margin: float | None = None, *, unread: Unread | None = None
    ) -> NDArray[np.str_]:
        """Name the class of each image, [B]; with a margin by `early_opinions`, else by all templates.

        Args:
            images: paths, PIL images, arrays or tensors.
            margin: see `early_opinions`.
            unread: a dict for places of images that cannot be read, and reasons; without it, an error.

        Raises:
            PromptPrismError: no image can be read, or an answer is not finite.
        """
        if margin is None:
            best = self.predict_proba(images, unread=unread).argmax(-1)
        else:
            best = self.early_opinions(images, margin, unread=unread).fused.prediction.numpy()
        named: NDArray[np.str_] = self.classes_[best]
        return named

    def has_seen(self, image: ImageSource) -> bool:
        """Whether an image was learned from, by the bytes of its file; no where it cannot be read."""
        known = self.data_.seen if self.data_ else frozenset()
        try:
            return bool(known) and picture_id(image) in known
        except PromptPrismError:
            return False

    def predict_proba(self, images: Images, *, unread: Unread | None = None) -> NDArray[np.float32]:
        """Class probabilities [B, K], columns in the order of ``classes_``; of the fused opinion, if any."""
        parts = [self._classifier.probabilities(logits) for logits in self._logits(images, unread)]
        return torch.cat(parts).cpu().numpy()

    def opinions(self, images: Images, *, unread: Unread | None = None) -> Opinions:
        """Each template's opinion and the fused one: belief of each class, and uncertainty.

        Raises:
            PromptPrismError: the method has no opinions, only probabilities; or as for `predict`.
        """
        batches = [self._classifier.opinions(logits) for logits in self._logits(images, unread)]
        return Opinions(
            fused=Opinion(torch.cat([fused.weight.cpu() for _, fused in batches])),
            templates=Opinion(torch.cat([templates.weight.cpu() for templates, _ in batches], dim=1)),
        )

    def early_opinions(self, images: Images, margin: float, *, unread: Unread | None = None) -> EarlyOpinions:
        """Fused opinions of no more templates than each image takes; see `promptprism.inference.early`.

        The margin is how far, in nats, the leading class must be ahead for an image to be settled: more is
        slower and nearer to `opinions`, infinity is `opinions`. All else is as for `predict`.

        Raises:
            PromptPrismError: the method has no opinions, or the margin is negative; or as for `predict`.
        """
        return Predictor(self._classifier).early_opinions(self._sources(images), margin, unread=unread)

    def margin_for(self, images: Images, budget: float) -> float:
        """The margin with which images like these take so many templates on average, or a few less.

        Args:
            images: best are validation images: those learned from are settled sooner than others.
            budget: templates per image, 1 to M.

        Raises:
            PromptPrismError: the method has no opinions, or the budget is less than 1.
        """
        rule = check_early(self._classifier, 0.0)
        return margin_for(lead(fused_so_far(self.opinions(images).templates, rule)), budget)

    def score(
        self, images: Images | Dataset, labels: Labels | None = None, sample_weight: Weights | None = None
    ) -> float:
        """Accuracy on labelled images, of which each may count as much as it weighs; else as `evaluate`."""
        if sample_weight is None:
            return self.evaluate(images, labels).accuracy
        _, records = self.labelled(images, labels)
        weights = check_weights(sample_weight, len(records))
        best = self.predict_proba([record.source for record in records]).argmax(-1)
        right = best == [record.label for record in records]
        return float(weights @ right / weights.sum())

    def evaluate(self, images: Images | Dataset, labels: Labels | None = None) -> Evaluation:
        """Score on labelled images, or on the test split of data (on all its images where it has none).

        The labels must be among ``classes_``, by name; indices count in ``classes_``.

        Raises:
            PromptPrismError: the data has classes that the model does not know; see `with_classes`.
        """
        dataset, records = self.labelled(images, labels)
        result = evaluate(Predictor(self._classifier), records, dataset.name)
        self.scores_[dataset.name] = result.metrics
        return result

    def calibrate(
        self,
        images: Images | Dataset,
        labels: Labels | None = None,
        *,
        risk: float = 0.05,
        alpha: float = 0.1,
        score: Score = "lac",
        per_class: bool = False,
    ) -> Calibration:
        """Learn from held-out photos how far to trust; probabilities are at its temperature from then on.

        What comes out is ``calibration_`` too, and is saved; `promptprism.evaluation.calibration.calibrate`
        has the arguments, `evaluate` those for the photos.

        Raises:
            PromptPrismError: photos that were learned from, too few, or as for `evaluate`.
        """
        dataset, records = self.labelled(images, labels)
        known = self._classifier, records, dataset.name, self.data_
        found = calibrate(*known, risk=risk, alpha=alpha, score=score, per_class=per_class)
        self._set_calibration(found)
        return found

    def predict_sets(self, images: Images, *, unread: Unread | None = None) -> NDArray[np.bool_]:
        """Which of ``classes_`` are in the conformal set of each image, [B, K]; see `calibrate`.

        Raises:
            PromptPrismError: nothing was calibrated (for these classes); or as for `predict`.
        """
        sets = sets_of(self.calibration_)
        return sets.of(torch.from_numpy(self.predict_proba(images, unread=unread))).numpy()

    def score_early(
        self, images: Images | Dataset, labels: Labels | None = None, *, margin: float
    ) -> EarlyScore:
        """Accuracy and cost of `early_opinions` on labelled images; arguments as for `evaluate`.

        Raises:
            PromptPrismError: as `evaluate` and `early_opinions` do.
        """
        _, records = self.labelled(images, labels)
        start = time.perf_counter()
        early = self.early_opinions([record.source for record in records], margin)
        seconds = time.perf_counter() - start
        right = early.fused.prediction == torch.tensor([record.label for record in records])
        used = early.templates_used.double().mean().item()
        return EarlyScore(right.double().mean().item(), used, len(records) / seconds)

    def explain(self, image: ImageSource, name: str | None = None, top: int = 3) -> Explanation:
        """Look inside the prediction for one image; see `promptprism.inference.explain.explain`."""
        return explain(self._classifier, image, name, top)

    def labelled(self, images: Images | Dataset, labels: Labels | None = None) -> tuple[Dataset, Records]:
        """Data, and its images to score on with labels of ``classes_``; arguments as for `evaluate`."""
        space = self._classifier.space
        dataset = as_dataset(images, labels, None if labels is None else space.names)
        return dataset, records_of_known(dataset, space)

    @property
    def _classifier(self) -> Classifier:
        if not hasattr(self, "classifier_"):
            raise NotFittedError("this PromptPrism is not fitted yet: call fit, or load_model, first")
        return self.classifier_

    def _set_calibration(self, calibration: Calibration | None) -> None:
        self.calibration_ = calibration
        self.classifier_ = replace(
            self.classifier_, temperature=calibration.temperature if calibration else 1.0
        )

    def _logits(self, images: Images, unread: Unread | None) -> Iterator[Tensor]:
        return Predictor(self._classifier).logits(self._sources(images), unread=unread)

    def _sources(self, images: Images) -> list[ImageSource]:
        sources = as_sources(images)
        if not sources:
            raise PromptPrismError("there is no image to look at: give at least one")
        return sources
