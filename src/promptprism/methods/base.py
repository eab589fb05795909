"""What all methods share: settings, shape, and the ways to a loss and to a classifier."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from promptprism.backbones import Backbone
from promptprism.data.names import LabelSpace
from promptprism.data.views import view_names
from promptprism.errors import PromptPrismError
from promptprism.methods.classifier import Classifier, Texts


class MethodSettings(BaseModel):
    """Settings of every method; frozen, and unknown names are refused.

    The schedule is the field's (CoOp's): SGD, one epoch at the constant `warmup_lr`, then a cosine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: ClassVar[str]
    """Name of the method that these are the settings of."""
    version: ClassVar[int] = 1
    """Of the method: raised when the same settings make other numbers, or a default becomes another value."""

    epochs: int = Field(default=5, ge=0, description="Passes over the training images.")
    batch_size: int = Field(default=4, ge=1, description="Images per training step.")
    lr: float = Field(
        default=0.0035,
        gt=0,
        description="Peak learning rate of SGD for a backbone with CLIP's logit scale of 100; training uses "
        "lr * (100 / logit_scale)^2, so that one step moves the logits equally far on any backbone.",
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of SGD.")
    weight_decay: float = Field(default=5e-4, ge=0, description="Weight decay of SGD on everything learned.")
    warmup_lr: float = Field(default=1e-5, ge=0, description="Constant learning rate of the first epoch.")
    views: Literal["maple", "flip", "set1", "set2"] = Field(
        default="maple",
        description="Augmentations in training: maple is the field's random crop (8 to 100 %) and flip, flip "
        "has no crop; set1 is another one for each template, set2 the same after a random crop.",
    )

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
    """

    templates: int = 1
    text_prompts: int = 0
    vision_prompts: int = 0
    vision_from: int = 0
    text_memory_mb: float = math.inf
    texts_per_image: bool = False


class Method(nn.Module):
    """What is learned on top of a frozen backbone, and its loss; called, it gives the loss of a batch.

    `parameters()` and `state_dict()` hold what is learned and nothing else; the backbone is no submodule. A
    method has no label space of its own: what a label space decides comes with each batch, see `texts`, and
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
    views: tuple[str, ...]
    """The augmentation of each distinct view in training, for `data.make_views`."""

    def __init__(self, backbone: Backbone, settings: MethodSettings | None = None, seed: int = 1) -> None:
        super().__init__()
        settings = self.Settings() if settings is None else settings
        if type(settings) is not self.Settings:
            raise PromptPrismError(
                f"Method {self.name!r} takes {self.Settings.__name__}, not {type(settings).__name__}."
            )
        self.settings = settings
        self.views = view_names(settings.views, 1)
        # Not registered as a submodule: state_dict() is the adapter.
        object.__setattr__(self, "backbone", backbone)
        self.backbone: Backbone
        self.build(seed)

    @property
    def shape(self) -> Shape:
        """What a step and a prediction cost depends on this."""
        return Shape()

    @property
    def separable(self) -> bool:
        """Whether the logit of a class is the same in every label space."""
        return True

    def build(self, seed: int) -> None:
        """Make what is learned; zero-shot learns nothing."""

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

    def forward(self, views: Tensor, labels: Tensor, texts: Texts, epoch: int) -> Tensor:
        """The training objective, a scalar.

        Args:
            views: [M or 1, B, 3, H, W].
            labels: [B], indices into the names of the label space.
            texts: what `texts` made of the label space that is learned, K classes.
            epoch: counted from 0.
        """
        raise NotImplementedError

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
            return self.classify(self.texts(space), learned)

    def classify(self, texts: Texts, learned: LabelSpace | None) -> Classifier:
        """Make the classifier of these texts; called by `classifier`, without gradients."""
        raise NotImplementedError
