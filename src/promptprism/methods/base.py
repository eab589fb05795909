"""What all methods share: settings, the label space, and the way from features to a prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from promptprism.backbones import Backbone
from promptprism.data.names import check_class_names, check_phrase, fill
from promptprism.data.views import view_names
from promptprism.errors import PromptPrismError
from promptprism.evidence import Opinion
from promptprism.prompts import encode_text


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


class Kept:
    """A tensor made from what a method has learned, and from a label space: kept until one of them changes.

    Before each use, what it was made from (learned tensors, class names, phrase) is compared with what is
    there now: milliseconds even for 14 million numbers, and no way of changing a method can leave it stale.
    """

    def __init__(self) -> None:
        self._value: Tensor | None = None
        self._made_from: tuple[tuple[str, ...], str, list[Tensor]] = ((), "", [])

    def get(self, method: Method, make: Callable[[], Tensor]) -> Tensor:
        """What `make` makes of the method as it is now, without gradients."""
        names, phrase = tuple(method.class_names), method.phrase
        learned = [value.detach() for value in method.parameters()]
        made_from = self._made_from
        if self._value is None or made_from[:2] != (names, phrase) or not _equal(made_from[2], learned):
            with torch.no_grad():
                self._value = make()
            self._made_from = names, phrase, [value.clone() for value in learned]
        return self._value


def _equal(old: list[Tensor], new: list[Tensor]) -> bool:
    return all(map(torch.equal, old, new))


class Method(nn.Module):
    """A frozen backbone, a label space, and what is learned to tell its classes apart.

    `parameters()` and `state_dict()` hold what is learned and nothing else; the backbone is no submodule.

    Args:
        backbone: the frozen model; decides device and dtype.
        class_names: the label space that is learned, K names.
        settings: of the method's `Settings`; None takes the defaults.
        phrase: the data set's own phrase with {} for the class name, used wherever a hand-made text is.
        seed: of everything random in the start values.

    Raises:
        PromptPrismError: unusable class names, phrase or settings.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    prediction_settings: ClassVar[frozenset[str]] = frozenset()
    """Settings that training does not see, so that they may be chosen anew for what was learned."""
    evidential: bool = False
    """Whether the method forms opinions; all others give probabilities only."""
    text_is_fixed: bool = True
    """Whether text features are the same for all images: made once, they can be given to `forward`."""
    learned_names: tuple[str, ...]
    """The label space that was learned; `set_classes` does not change it."""
    views: tuple[str, ...]
    """The augmentation of each distinct view in training, for `data.make_views`."""

    def __init__(
        self,
        backbone: Backbone,
        class_names: Sequence[str],
        settings: MethodSettings | None = None,
        phrase: str = "a photo of a {}.",
        seed: int = 1,
    ) -> None:
        super().__init__()
        settings = self.Settings() if settings is None else settings
        if type(settings) is not self.Settings:
            raise PromptPrismError(
                f"Method {self.name!r} takes {self.Settings.__name__}, not {type(settings).__name__}."
            )
        self.settings = settings
        self.views = view_names(settings.views, 1)
        self.phrase = check_phrase(phrase)
        # Not registered as a submodule: state_dict() is the adapter.
        object.__setattr__(self, "backbone", backbone)
        self.backbone: Backbone
        self.build(seed)
        self.set_classes(class_names)
        self.learned_names = self.class_names

    @property
    def separable(self) -> bool:
        """Whether the logit of a class is the same in every label space."""
        return True

    def build(self, seed: int) -> None:
        """Make what is learned; zero-shot learns nothing."""

    def phrases(self) -> tuple[str, ...]:
        """The hand-made phrases whose features make the zero-shot classifier."""
        return (self.phrase,)

    @property
    def prompt_phrase(self) -> str:
        """The phrase that the texts of the method itself are made with."""
        return self.phrase

    def set_classes(self, class_names: Sequence[str]) -> None:
        """Change the label space, for instance to classes never trained; what was learned stays.

        Raises:
            PromptPrismError: see `check_class_names`, or a name is too long; the old label space stays then.
        """
        names = check_class_names(class_names)
        tokens = self.backbone.tokenize(fill(self.prompt_phrase, names))
        plain = [self.backbone.tokenize(fill(phrase, names)) for phrase in self.phrases()]
        self.class_names, self.tokens, self._plain_tokens = names, tokens, plain
        self._zero_shot: Tensor | None = None

    def zero_shot_features(self) -> Tensor:
        """Text features of the hand-made phrases, averaged over phrases and normalised again: [1, K, D]."""
        if self._zero_shot is None:
            # Inference tensors could not take part in a later training step.
            with torch.inference_mode(False), torch.no_grad():
                features = torch.stack([encode_text(self.backbone, tokens) for tokens in self._plain_tokens])
                self._zero_shot = F.normalize(features.mean(0), dim=-1)
        return self._zero_shot

    def text_features(self) -> Tensor:
        """Text features of the label space under the M templates, [M, K, D], normalised."""
        raise NotImplementedError

    def forward(self, views: Tensor, text: Tensor | None = None) -> Tensor:
        """Logits [M, B, K], float32.

        Args:
            views: [M, B, 3, H, W], or [1, B, 3, H, W] seen by all templates.
            text: `text_features()` if they are at hand.
        """
        raise NotImplementedError

    def loss(self, views: Tensor, labels: Tensor, epoch: int) -> Tensor:
        """The training objective.

        Args:
            views: [M or 1, B, 3, H, W].
            labels: [B], indices into `class_names`.
            epoch: counted from 0.
        """
        raise NotImplementedError

    def logits(self, image: Tensor, text: Tensor) -> Tensor:
        """Scaled cosines [M, B, K] of image features [M or 1, B, D] and text features [M or B, K, D]."""
        return self.backbone.logit_scale * (image @ text.transpose(-1, -2))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Class probabilities [B, K] from logits [M, B, K]: softmax of their mean over templates."""
        return logits.mean(0).softmax(-1)

    def opinions(self, logits: Tensor) -> tuple[Opinion, Opinion]:  # noqa: ARG002
        """Opinions of the templates [M, B, K] and the fused one [B, K].

        Raises:
            PromptPrismError: the method has a softmax head, which knows no uncertainty.
        """
        raise PromptPrismError(
            f"Method {self.name!r} has no opinions, only probabilities: "
            "opinions come from 'cdc' with head='evidential'."
        )
