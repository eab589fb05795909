"""The estimator: fit, predict, say how sure; with scikit-learn's conventions where they fit."""

from __future__ import annotations

import inspect
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from promptprism.adapter import Card, DataSummary, check_new, load_adapter, read_card, save_adapter
from promptprism.backbones import Backbone, Precision, as_backbone
from promptprism.data.content import picture_id
from promptprism.data.images import ImageSource
from promptprism.data.inputs import Images, Labels, as_dataset, as_sources, records_of_known
from promptprism.data.lesson import make_lesson
from promptprism.data.names import LabelSpace, check_class_names, check_tokens
from promptprism.data.records import Dataset, Records
from promptprism.drift import Reference
from promptprism.errors import CollapseWarning, NotFittedError, PromptPrismError
from promptprism.evaluation.calibration import calibrate
from promptprism.evaluation.evaluate import Evaluation, evaluate
from promptprism.evidence import Opinion, Opinions
from promptprism.hub import located, push
from promptprism.inference.conformal import Calibration, Score, sets_of
from promptprism.inference.doubt import held_out, reference_of
from promptprism.inference.early import EarlyOpinions, EarlyScore, check_early, fused_so_far, lead, margin_for
from promptprism.inference.explain import Explanation, explain
from promptprism.inference.predictor import Predictor, Unread
from promptprism.methods import Classifier, MethodSettings, make_settings
from promptprism.training.checkpoint import Epoch
from promptprism.training.loop import Trained, learn


class PromptPrism:
    """Adapts a frozen CLIP to your classes from a few labelled images.

    Attributes ending in an underscore exist after `fit`: ``classes_`` (names, in the order of the columns of
    `predict_proba`), ``backbone_``, ``method_`` (what was learned), ``classifier_`` (the same, frozen, for
    these classes), ``training_`` (what training was and cost).

    Args:
        method: ``"cdc"``, ``"maple"``, ``"coop"``, ``"zero-shot"``...; ``promptprism methods`` lists all.
        backbone: a name for `load_backbone`, or a backbone; ``"auto"`` is the shipped one for the data.
        pretrained: tag or file of the weights; see `load_backbone`.
        precision: what the matrix products run in; ``"auto"`` is what is faster here, and safe.
        device: ``"auto"`` takes CUDA where there is one, else MPS.
        devices: GPUs of this machine, or cores of its CPU, that share each training step as processes; with
            it ``precision="auto"`` is float32, so that any number learns the same.
        shots: training images drawn per class; None takes all.
        allow_fewer: take what there is of classes with fewer images than shots.
        seed: of the draw, the start values, the order and the views.
        phrase: text with {} for the class name; None takes the data's own.
        progress: show a bar on standard error while training.
        settings: of the method, such as ``epochs``, ``lr``, ``templates``; see ``promptprism methods cdc``.

    Raises:
        PromptPrismError: no such method or setting, or a value that it cannot have.
    """

    reference_: Reference | None
    _held_out: tuple[str, Sequence[ImageSource]]

    def __init__(
        self,
        method: str = "cdc",
        backbone: str | Backbone = "auto",
        pretrained: str | None = None,
        *,
        precision: Precision = "auto",
        device: str = "auto",
        devices: int | None = None,
        shots: int | None = None,
        allow_fewer: bool = False,
        seed: int = 1,
        phrase: str | None = None,
        progress: bool = False,
        **settings: Any,
    ) -> None:
        self.method, self.settings = method, settings
        self.backbone, self.pretrained, self.device = backbone, pretrained, device
        self.precision: Precision = precision
        self.devices, self.progress = devices, progress
        self.shots, self.allow_fewer, self.seed, self.phrase = shots, allow_fewer, seed, phrase
        _settings(method, settings)

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002 - scikit-learn's signature
        """All parameters and settings by name."""
        return {name: getattr(self, name) for name in _PARAMETERS} | self.settings

    def set_params(self, **params: Any) -> Self:
        """Change parameters or settings; takes effect at the next `fit`.

        Raises:
            PromptPrismError: what comes out has no such setting, or a value that it cannot have; nothing is
                changed then.
        """
        own = {name: params.pop(name) for name in _PARAMETERS if name in params}
        settings = self.settings | params
        _settings(own.get("method", self.method), settings)
        for name, value in own.items():
            setattr(self, name, value)
        self.settings = settings
        return self

    def __repr__(self) -> str:
        return f"PromptPrism({', '.join(f'{name}={value!r}' for name, value in self.get_params().items())})"

    def fit(
        self,
        images: Images | Dataset | None = None,
        labels: Labels | None = None,
        class_names: Sequence[str] | None = None,
        *,
        corrections: str | Path | None = None,
        start: PromptPrism | None = None,
        checkpoint: str | Path | None = None,
        callback: Callable[[Epoch], None] | None = None,
    ) -> Self:
        """Learn from labelled images.

        Args:
            images: with ``labels``: paths, PIL images, arrays or tensors. Without: a data set, or a folder,
                CSV or registered name that `load_data` reads; its training split is learned from. None
                learns from corrections alone, of the classes of ``start``.
            labels: a class name for each image, or an index into ``class_names``.
            class_names: with ``labels``: the label space; None takes the sorted labels.
            corrections: a CSV of corrected photos, see `read_corrections`; all are learned from, beside the
                shots.
            start: a fitted model to go on from: same method and backbone; its classes stay.
            checkpoint: a file to keep the state in after every epoch; a fit that finds its own goes on from
                there.
            callback: called with each `Epoch` when it is done: its number, steps, rate, loss and seconds.

        Raises:
            PromptPrismError: unusable images, labels, class names or settings, or a picture under two labels.
            KeyboardInterrupt: Ctrl-C, with a message that says what was kept.
        """
        settings, seed = _settings(self.method, self.settings), _whole("seed", self.seed)
        shots = None if self.shots is None else _whole("shots", self.shots)
        before = start._classifier.space if start else None
        if images is None and not (start and corrections):
            raise PromptPrismError(
                "there is nothing to learn from: give data, or corrections and the model to start from "
                "(--corrections FILE --from ADAPTER)"
            )
        dataset = None if images is None else as_dataset(images, labels, class_names)
        name = dataset.name if dataset else str(corrections)
        file = Path(corrections) if corrections else None
        lesson = make_lesson(dataset, shots, seed, self.allow_fewer, file, before.names if before else ())
        devices = None if self.devices is None else _whole("devices", self.devices)
        precision = "float32" if devices and self.precision == "auto" else self.precision
        chosen = start.backbone_ if start and self.backbone == "auto" else self.backbone
        backbone = as_backbone(chosen, name, self.pretrained, precision, self.device)
        phrase = self.phrase
        if phrase is None:
            phrase = (before or dataset or LabelSpace).phrase
        trained = learn(
            settings,
            backbone,
            _label_space(backbone, lesson.class_names, phrase),
            lesson.records,
            seed=seed,
            validation=lesson.validation,
            start=start.trained_ if start else None,
            checkpoint=Path(checkpoint) if checkpoint is not None else None,
            progress=self.progress,
            callback=callback,
            devices=devices,
        )
        if why := trained.training.collapsed:
            warnings.warn(f"the run collapsed: {why}. It is no result", CollapseWarning, stacklevel=2)
        data = None
        if settings.learns:
            seen = {picture_id(record.source) for record in lesson.records}
            data = DataSummary(
                name=name,
                images=Dataset(name, lesson.class_names).counts(lesson.records),
                shots=shots,
                seed=seed,
                corrections=lesson.corrected,
                left_out=lesson.left_out,
                started_from=start.trained_.fingerprint if start else None,
                pictures="".join(sorted(seen | (start.data_.seen if start and start.data_ else set()))),
            )
        self._set_fitted(trained, trained.space, data)
        if dataset:
            self._held_out = held_out(dataset, lesson.records if settings.learns else ())
        return self

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

    def score(self, images: Images | Dataset, labels: Labels | None = None) -> float:
        """Accuracy on labelled images; arguments as for `evaluate`."""
        return self.evaluate(images, labels).accuracy

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

    def with_classes(self, class_names: Sequence[str]) -> Self:
        """The same model for another label space; what was learned is shared, not copied.

        Raises:
            PromptPrismError: unusable class names.
        """
        phrase = self._classifier.space.phrase
        space = _label_space(self.backbone_, class_names, phrase)
        other = type(self)(**self.get_params())
        other._set_fitted(self.trained_, space, self.data_)
        return other

    def save(self, path: str | Path) -> Path:
        """Write an adapter folder: what was learned, and a card. `load_model` reads it.

        Raises:
            PromptPrismError: the folder exists, or the place cannot be written.
        """
        classifier = self._classifier
        check_new(Path(path))
        self.reference_ = self.reference_ or reference_of(classifier, *self._held_out)
        facts = self.data_, self.scores_, self.reference_, self.calibration_
        card = Card.of(self.trained_, classifier.space, *facts)
        save_adapter(Path(path), self.method_, card)
        return Path(path)

    def push_to_hub(self, repo_id: str, **how: Any) -> str:
        """Save to ``owner/name`` on the Hugging Face hub; arguments are those of `promptprism.hub.push`."""
        with tempfile.TemporaryDirectory() as place:
            return push(self.save(Path(place, "adapter")), repo_id, **how)

    @staticmethod
    def from_pretrained(name: str | Path, **how: Any) -> PromptPrism:
        """Open an adapter of the hub, ``hf:owner/name[@revision]``, or a folder, by `load_model`."""
        return load_model(name, **how)

    @property
    def _classifier(self) -> Classifier:
        if not hasattr(self, "classifier_"):
            raise NotFittedError("this PromptPrism is not fitted yet: call fit, or load_model, first")
        return self.classifier_

    def _set_fitted(self, trained: Trained, space: LabelSpace, data: DataSummary | None) -> None:
        self.classifier_ = trained.classifier(space)
        self.trained_, self.training_ = trained, trained.training
        self.method_, self.backbone_ = trained.method, trained.method.backbone
        self.classes_: NDArray[np.str_] = np.array(space.names)
        self.data_ = data
        self.scores_: dict[str, dict[str, float]] = {}
        self.reference_ = None
        self._held_out = "", ()
        self.calibration_: Calibration | None = None

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

    def labelled(self, images: Images | Dataset, labels: Labels | None = None) -> tuple[Dataset, Records]:
        """Data, and its images to score on with labels of ``classes_``; arguments as for `evaluate`."""
        space = self._classifier.space
        dataset = as_dataset(images, labels, None if labels is None else space.names)
        return dataset, records_of_known(dataset, space)


def _label_space(backbone: Backbone, class_names: Sequence[str], phrase: str) -> LabelSpace:
    """A label space whose classes the backbone can tell apart."""
    space = LabelSpace(check_class_names(class_names), phrase)
    check_tokens(space.names, backbone.tokenize(space.texts("{}")).tolist())
    return space


def _whole(name: str, value: Any) -> int:
    if not isinstance(value, Integral):
        raise PromptPrismError(f"{name} is {value!r}: give a whole number")
    return int(value)


def _settings(method: str, given: Mapping[str, Any]) -> MethodSettings:
    return make_settings(method, _PARAMETERS, **given)


_PARAMETERS = tuple(name for name in inspect.signature(PromptPrism).parameters if name != "settings")


def load_model(
    path: str | Path,
    *,
    backbone: str | Backbone | None = None,
    pretrained: str | None = None,
    precision: Precision = "auto",
    device: str = "auto",
    trust_backbone: bool = False,
    **settings: Any,
) -> PromptPrism:
    """Read an adapter folder that `PromptPrism.save` wrote; nothing is unpickled.

    Args:
        path: the folder, or ``hf:owner/name[@revision]``, which is fetched from the Hugging Face hub.
        backbone: the frozen model, if it is at hand, or its name; None loads the one that the card names.
        pretrained: where its weights are on this machine, if not where the card says.
        precision: of the backbone; what the adapter was learned in does not bind.
        device: where to load the backbone.
        trust_backbone: open a hub, a folder or a file that the card names, and you did not.
        settings: other values of settings that training does not see, such as ``distance_aware``.

    Raises:
        PromptPrismError: anything missing, damaged, of another format or of another backbone, or a setting
            that was learned with.
    """
    path, chosen = located(path), None
    if settings:
        card = read_card(path)
        chosen = make_settings(card.method, **card.settings | settings)
    trained, card = load_adapter(path, backbone, pretrained, precision, device, trust_backbone, chosen)
    model = PromptPrism(
        card.method,
        backbone or card.backbone.name,
        pretrained or card.backbone.pretrained,
        precision=precision,
        device=device,
        shots=card.data.shots if card.data else None,
        seed=card.seed,
        phrase=card.phrase,
        **card.settings | settings,
    )
    model._set_fitted(trained, card.label_space, card.data)
    model.scores_ = {name: dict(scores) for name, scores in card.scores.items()}
    model.reference_ = card.reference
    # With other settings it is another model than was calibrated.
    model._set_calibration(None if settings else card.calibration)
    return model
