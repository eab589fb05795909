"""The estimator: learn from images, keep what was learned, read it again."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from promptprism.adapter import Card, DataSummary, check_new, load_adapter, read_card, save_adapter
from promptprism.backbones import Backbone, Precision, as_backbone
from promptprism.data.content import picture_id
from promptprism.data.images import ImageSource
from promptprism.data.inputs import Images, Labels, as_dataset
from promptprism.data.lesson import make_lesson
from promptprism.data.names import LabelSpace, check_class_names, check_tokens
from promptprism.data.records import Dataset
from promptprism.data.weights import ClassWeight, Weights, by_class
from promptprism.drift import MOST, Reference
from promptprism.errors import CollapseWarning, PromptPrismError, warn
from promptprism.estimator.conventions import whole
from promptprism.estimator.fitted import Fitted
from promptprism.hub import located, push
from promptprism.inference.conformal import Calibration
from promptprism.inference.doubt import evenly, held_out, reference_of
from promptprism.methods import make_settings
from promptprism.training.checkpoint import Epoch
from promptprism.training.loop import Trained, learn


class PromptPrism(Fitted):
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
        class_weight: ``"balanced"`` lets all classes count the same, however many images they have; or a
            weight by class name, 1 for those without.
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
        class_weight: ClassWeight = None,
        seed: int = 1,
        phrase: str | None = None,
        progress: bool = False,
        **settings: Any,
    ) -> None:
        self.method, self.settings = method, settings
        self.backbone, self.pretrained, self.device = backbone, pretrained, device
        self.precision: Precision = precision
        self.devices, self.progress = devices, progress
        self.shots, self.allow_fewer, self.class_weight = shots, allow_fewer, class_weight
        self.seed, self.phrase = seed, phrase
        self._check_settings(method, settings)

    def fit(
        self,
        images: Images | Dataset | None = None,
        labels: Labels | None = None,
        class_names: Sequence[str] | None = None,
        *,
        sample_weight: Weights | None = None,
        corrections: str | Path | None = None,
        start: PromptPrism | None = None,
        checkpoint: str | Path | None = None,
        callback: Callable[[Epoch], None] | None = None,
    ) -> Self:
        """Learn from labelled images.

        Args:
            images: with ``labels``: paths, PIL images, arrays or tensors, in a list, an array, a Series or a
                frame of one column. Without: a data set, or a folder,
                CSV or registered name that `load_data` reads; its training split is learned from. None
                learns from corrections alone, of the classes of ``start``.
            labels: a class name for each image, or an index into ``class_names``.
            class_names: with ``labels``: the label space; None takes the sorted labels.
            sample_weight: with ``labels``: how much each image counts; 2 is as if it were there twice, 0 as
                if it were not.
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
        settings, seed = self._check_settings(self.method, self.settings), whole("seed", self.seed)
        shots = None if self.shots is None else whole("shots", self.shots)
        if start is not None and not isinstance(start, PromptPrism):
            raise PromptPrismError(
                f"start is {start!r}: give a fitted PromptPrism, such as load_model(FOLDER)"
            )
        before = start._classifier.space if start else None
        if images is None and not (start and corrections):
            raise PromptPrismError(
                "there is nothing to learn from: give data, or corrections and the model to start from "
                "(--corrections FILE --from ADAPTER)"
            )
        dataset = None if images is None else as_dataset(images, labels, class_names, sample_weight)
        name = dataset.name if dataset else str(corrections)
        file = Path(corrections) if corrections else None
        shots = shots if settings.learns else None  # what learns nothing needs none
        lesson = make_lesson(dataset, shots, seed, self.allow_fewer, file, before.names if before else ())
        records = by_class(lesson.records, lesson.class_names, self.class_weight)
        devices = None if self.devices is None else whole("devices", self.devices)
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
            records,
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
                class_weight=self.class_weight,
                corrections=lesson.corrected,
                left_out=lesson.left_out,
                started_from=start.trained_.fingerprint if start else None,
                pictures="".join(sorted(seen | (start.data_.seen if start and start.data_ else set()))),
            )
        self._set_fitted(trained, trained.space, data)
        if dataset:
            self._held_out = held_out(dataset, lesson.records if settings.learns else ())
        return self

    def with_classes(self, class_names: Sequence[str]) -> Self:
        """The same model for another label space; what was learned is shared, not copied.

        Raises:
            PromptPrismError: unusable class names.
        """
        phrase = self._classifier.space.phrase
        space = _label_space(self.backbone_, class_names, phrase)
        if caveat := self.trained_.caveat(space):
            warn(caveat)
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
        if self.reference_ is None:
            what, photos = self._held_out
            # The same picture again, or one that was learned before, is not held out.
            new = [photo for photo in evenly(photos, MOST) if not self.has_seen(photo)]
            self.reference_ = reference_of(classifier, what, new)
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


def _label_space(backbone: Backbone, class_names: Sequence[str], phrase: str) -> LabelSpace:
    """A label space whose classes the backbone can tell apart."""
    space = LabelSpace(check_class_names(class_names), phrase)
    check_tokens(space.names, backbone.tokenize(space.texts("{}")).tolist())
    return space


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
        if "preset" in settings:
            raise PromptPrismError(
                f"preset={settings['preset']!r} says how to learn, and adapter '{path}' has learned: "
                "leave it out"
            )
        chosen = make_settings(card.method, **card.settings | settings)
    trained, card = load_adapter(path, backbone, pretrained, precision, device, trust_backbone, chosen)
    model = PromptPrism(
        card.method,
        backbone or card.backbone.name,
        pretrained or card.backbone.pretrained,
        precision=precision,
        device=device,
        shots=card.data.shots if card.data else None,
        class_weight=card.data.class_weight if card.data else None,
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
