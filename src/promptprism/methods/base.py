"""What all methods share: settings, shape, and the ways to a loss and to a classifier."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from promptprism.backbones import Backbone
from promptprism.data.names import LabelSpace
from promptprism.data.records import Records
from promptprism.data.views import view_names
from promptprism.errors import PromptPrismError
from promptprism.methods.classifier import PART, Classifier, Texts, on_disk

# Fields that methods have with other defaults.
Epochs = Annotated[int, Field(ge=0, description="Passes over the training images.")]
BatchSize = Annotated[int, Field(ge=1, description="Images per training step.")]
Optimizer = Annotated[
    Literal["sgd", "adamw"], Field(description="sgd: with momentum; adamw: with betas of 0.9 and 0.999.")
]
LearningRate = Annotated[
    float,
    Field(
        gt=0,
        description="Peak learning rate for a backbone with CLIP's logit scale of 100; training uses "
        "lr * (100 / logit_scale)^2 with SGD and lr * 100 / logit_scale with AdamW, so that one step moves "
        "the logits equally far on any backbone.",
    ),
]
WeightDecay = Annotated[float, Field(ge=0, description="Weight decay of everything learned.")]
Views = Annotated[
    Literal["maple", "half", "flip", "set1", "set2"],
    Field(
        description="Augmentations in training: maple is the field's random crop (8 to 100 %) and flip, half "
        "crops less (50 to 100 %), flip has no crop; set1 is another one for each template, set2 the same "
        "after a random crop."
    ),
]


class MethodSettings(BaseModel):
    """Settings of every method; frozen, and unknown names are refused.

    The schedule of most is the field's (CoOp's): one epoch at the constant `warmup_lr`, then a cosine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: ClassVar[str]
    """Name of the method that these are the settings of."""
    version: ClassVar[int] = 1
    """Of the method: raised when the same settings make other numbers, or a default becomes another value."""
    earlier: ClassVar[Mapping[int, Mapping[str, Any]]] = {}
    """What defaults were in versions that made the same numbers: `preset=VERSION`, for what is read."""
    paper: ClassVar[Mapping[str, Any]] = {}
    """What `preset="paper"` takes instead of the defaults: the authors' setting, as far as it is known."""

    schedule: ClassVar[Literal["epochs", "steps"]] = "epochs"
    """epochs: warm-up, then a cosine from epoch to epoch; steps: a cosine from step to step, no warm-up."""
    lowest_lr: ClassVar[float] = 0.0
    """Where the cosine of steps ends."""
    adam_epsilon: ClassVar[float] = 1e-8
    """Added to AdamW's denominator."""

    epochs: Epochs = 5
    batch_size: BatchSize = 4
    optimizer: Optimizer = "sgd"
    lr: LearningRate = 0.0035
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of SGD.")
    weight_decay: WeightDecay = 5e-4
    warmup_lr: float = Field(default=1e-5, ge=0, description="Constant learning rate of the first epoch.")
    views: Views = "maple"

    @model_validator(mode="before")
    @classmethod
    def _of_preset(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or "preset" not in given:
            return given
        preset, rest = given["preset"], {name: value for name, value in given.items() if name != "preset"}
        # True would be version 1, and what is no number may have no hash.
        values = cls.paper if preset == "paper" else cls.earlier.get(preset) if type(preset) is int else None
        if values is None:
            versions = "".join(f"; {version}, the defaults of that version" for version in cls.earlier)
            raise PromptPrismError(
                f"preset={preset!r} of method {cls.method!r} is unknown: it is 'paper', the authors' setting "
                f"as far as it is known{versions}. Leave it out for the defaults"
            )
        return {**values, **rest}

    @property
    def learns(self) -> bool:
        """Whether anything is trained, so that images, shots and seeds mean anything."""
        return self.epochs > 0

    def differing(self) -> dict[str, Any]:
        """What is not the method's default, as JSON has it."""
        return self.model_dump(mode="json", exclude_defaults=True)


@dataclass(frozen=True)
class Shape:
    """What the arithmetic and the memory of a method depend on.

    Attributes:
        templates: M.
        text_prompts: n, learned tokens in each text.
        vision_prompts: learned tokens behind the patches; 0 is the plain image tower, which templates share.
        vision_from: image layers below the first vision prompts.
        text_memory_mb: MiB that the text tower may keep for the backward pass.
        texts_per_image: whether each image has text features of its own.
        text_learns: whether a step goes through the text tower; frozen texts are made once.
        image_learns: whether gradients go through the image tower, where there are no vision prompts.
        plain_images: passes of each image through the plain tower in a step, beside its own.
        backward_passes: through the text tower in a step.
        looks: passes over the training images before the first step.
        patch_groups: that a step deals the patches out to; a template sees one of them.
    """

    templates: int = 1
    text_prompts: int = 0
    vision_prompts: int = 0
    vision_from: int = 0
    text_memory_mb: float = math.inf
    texts_per_image: bool = False
    text_learns: bool = True
    image_learns: bool = False
    plain_images: int = 0
    backward_passes: int = 1
    looks: int = 0
    patch_groups: int = 1

    @property
    def through_images(self) -> bool:
        """Whether the backward pass goes through the image tower."""
        return self.image_learns or self.vision_prompts > 0


class Method(nn.Module):
    """What is learned on top of a frozen backbone, and its loss; called, it gives the loss of a batch.

    `state_dict()` holds what is learned and nothing else, parameters and what was kept of the images; the
    backbone is no submodule. Buffers that are not persistent are what a checkpoint needs besides. A method
    has no label space of its own: what a label space decides comes with each batch, see `texts`, and
    `classifier` makes a frozen one for any label space.

    Args:
        backbone: the frozen model; decides device and dtype.
        settings: of the method's `Settings`; None takes the defaults.
        seed: of everything random in the start values.

    Raises:
        PromptPrismError: settings of another method, or such that the backbone cannot have.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    prediction_settings: ClassVar[frozenset[str]] = frozenset()
    """Settings that training does not see, so that they may be chosen anew for what was learned."""
    lowered_settings: ClassVar[frozenset[str]] = frozenset()
    """Settings that may be lowered for what was learned: how much of something it kept is used."""
    chooses: ClassVar[bool] = False
    """Whether something is chosen by validation images, see `finish`."""
    continues: ClassVar[bool] = True
    """Whether its steps may start from what was learned before."""
    by_class: ClassVar[frozenset[str]] = frozenset()
    """What is learned of each class, on the second axis."""
    splits: ClassVar[bool] = False
    """Whether a step can be split over processes: what is learned enters `encode_image` and `encode_text` as
    prompts, or stays outside of the towers; and the loss draws nothing at random."""
    weighs: ClassVar[bool] = False
    """Whether images can count unequally; a `forward` that takes no weights makes it false."""
    views: tuple[str, ...]
    """The augmentation of each distinct view in training, for `data.make_views`."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "name" not in vars(cls) and hasattr(cls.Settings, "method"):
            cls.name = cls.Settings.method
        if "forward" in vars(cls):
            cls.weighs = "weights" in inspect.signature(cls.forward).parameters

    def __init__(self, backbone: Backbone, settings: MethodSettings | None = None, seed: int = 1) -> None:
        super().__init__()
        settings = self.Settings() if settings is None else settings
        if type(settings) is not self.Settings:
            raise PromptPrismError(
                f"Method {self.name!r} takes {self.Settings.__name__}, not {type(settings).__name__}."
            )
        self.settings, self.seed = settings, seed
        self.views = view_names(settings.views, 1)
        # Not registered as a submodule: state_dict() is the adapter.
        object.__setattr__(self, "backbone", backbone)
        self.backbone: Backbone
        self.build(seed)

    def use(self, settings: MethodSettings) -> None:
        """Take settings of prediction, or lower ones, for what was learned."""
        self.settings = settings

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"method {self.name!r}"

    @property
    def shape(self) -> Shape:
        """What a step and a prediction cost depends on this."""
        return Shape()

    def separable(self, space: LabelSpace, learned: LabelSpace) -> bool:
        """Whether the logit of a class is the same in every part of a label space as in the whole."""
        return True

    @classmethod
    def axes(cls, settings: Any, images: int) -> dict[str, tuple[int | None, ...]]:  # noqa: ARG003
        """Tensors by name whose sizes settings and training images decide, None where the backbone does.

        They bound all that the settings could make `build` allocate: a file whose tensors are others is
        refused before.
        """
        return {}

    def build(self, seed: int) -> None:
        """Make what is learned; zero-shot learns nothing."""

    def allot(self, classes: int, images: int) -> None:
        """Make room for what has the size of the label space learned, or of the training images."""

    def weigh(self, images: int) -> None:
        """Get ready for so many training images that count unequally.

        Raises:
            PromptPrismError: the method cannot weigh them.
        """
        if not self.weighs:
            raise PromptPrismError(
                f"method '{self.name}' cannot weigh images, its loss takes no weights: leave out "
                "sample_weight and class_weight, or take another method"
            )

    def prepare(self, texts: Texts, records: Records) -> None:
        """Look at the training images, before the first epoch."""

    def check_start(self, learned: Method) -> None:
        """Refuse to go on from what another method or backbone has learned, or where nothing goes on.

        Raises:
            PromptPrismError: why, and what to do.
        """
        for what, there, here in (
            ("method", learned.name, self.name),
            ("backbone", learned.backbone.fingerprint, self.backbone.fingerprint),
        ):
            if there != here:
                raise PromptPrismError(
                    f"the adapter to start from has {what} {there}, not {here}: take the same one, or start "
                    "anew without it (--from)"
                )
        if not self.settings.epochs or not self.continues:
            raise PromptPrismError(
                f"method '{self.name}' cannot start from an adapter, it learns anew from all its images: "
                "leave out --from (start), and give the data"
            )

    def go_on_from(self, learned: Method, places: Sequence[int]) -> None:
        """Start from what was learned before, instead of from the start values.

        Args:
            learned: has passed `check_start`.
            places: of each class that it learned, in the label space to learn.

        Raises:
            PromptPrismError: the settings give what is learned another shape.
        """
        before = learned.state_dict()
        with torch.no_grad():
            for name, value in self.state_dict().items():
                rows = value[:, list(places)] if name in self.by_class else value
                if name not in before or before[name].shape != rows.shape:
                    raise PromptPrismError(
                        f"what was learned before has another '{name}' than these settings ask for: start "
                        "with the settings that it was learned with, or anew"
                    )
                if name in self.by_class:
                    value[:, list(places)] = before[name]
                else:
                    value.copy_(before[name])

    def after_epoch(self, epoch: int) -> None:
        """Take note of what an epoch (from 0) has made, before its checkpoint."""

    def finish(self, texts: Texts, records: Records, validation: Records) -> None:
        """Choose or compute what comes after the last epoch.

        Args:
            texts: of the label space learned.
            records: the training images.
            validation: images to choose by, with the same labels; may be empty.
        """

    def phrases(self, space: LabelSpace) -> tuple[str, ...]:
        """The hand-made phrases whose features make the zero-shot classifier."""
        return (space.phrase,)

    def prompt_phrase(self, space: LabelSpace) -> str:
        """The phrase that the texts of the method itself are made with."""
        return space.phrase

    def texts(self, space: LabelSpace) -> Texts:
        """What a label space decides before anything is learned; made once for all of a training.

        Raises:
            PromptPrismError: a class name is too long for the backbone.
        """
        phrase, tokenize = self.prompt_phrase(space), self.backbone.tokenize
        tokens = tokenize(space.texts(phrase))
        hand_made = tuple(tokenize(space.texts(one)) for one in self.phrases(space))
        return Texts(self.backbone, space, phrase, tokens, hand_made)

    def forward(
        self, views: Tensor, labels: Tensor, texts: Texts, epoch: int, weights: Tensor | None = None
    ) -> Tensor:
        """The training objective, a scalar.

        Args:
            views: [M or 1, B, 3, H, W].
            labels: [B], indices into the names of the label space.
            texts: what `texts` made of the label space that is learned, K classes.
            epoch: counted from 0.
            weights: [B], of mean 1 over all training images, by which what is averaged over images is
                multiplied before; passed only where they are not all 1.

        Raises:
            PromptPrismError: the method takes no steps.
        """
        raise PromptPrismError(f"Method {self.name!r} learns nothing by steps: it has no loss.")

    def classifier(self, space: LabelSpace, learned: LabelSpace | None = None) -> Classifier:
        """What was learned so far, frozen, for a label space that need not be the one learned.

        Args:
            space: of K classes.
            learned: the label space that was learned; None takes it for the same.

        Raises:
            PromptPrismError: see `texts`.
        """
        # Explanations need gradients with respect to the image, which inference tensors do not allow.
        with torch.inference_mode(False), torch.no_grad():
            whole = self._classify_in_parts(space, learned or space) if len(space) > PART else None
            return self.classify(self.texts(space), learned) if whole is None else whole

    def _classify_in_parts(self, space: LabelSpace, learned: LabelSpace) -> Classifier | None:
        """The same for very many classes: their text features are made a part at a time, and lie on the disk.

        None where logits are more than products of features, or depend on the other classes.
        """
        parts = [replace(space, names=space.names[at : at + PART]) for at in range(0, len(space), PART)]
        first = self.classify(self.texts(parts[0]), learned) if self.separable(space, learned) else None
        if first is None or first.text is None or not first.by_class:
            return None
        rest = (self.classify(self.texts(part), learned).text for part in parts[1:])
        text = on_disk(chain([first.text], cast(Iterator[Tensor], rest)), len(space))
        return replace(first, texts=self.texts(space), text=text.to(self.backbone.device))

    def classify(self, texts: Texts, learned: LabelSpace | None) -> Classifier:
        """Make the classifier of these texts; called by `classifier`, without gradients."""
        raise PromptPrismError(f"Method {self.name!r} has no classify: it makes what answers of the texts.")
