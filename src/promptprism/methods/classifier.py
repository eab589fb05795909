"""What a method becomes for one label space: a frozen classifier of images."""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from promptprism.backbones import Backbone
from promptprism.data.names import LabelSpace
from promptprism.errors import PromptPrismError
from promptprism.evidence import FusionRule, Opinion, PartOfOpinion
from promptprism.prompts import encode_text, finish_image, start_image

#: Classes that are looked at together where there are more.
PART = 8192


@dataclass(frozen=True, eq=False)
class Texts:
    """What a label space decides before anything is learned.

    Attributes:
        backbone: the frozen model.
        space: of K classes.
        phrase: what the method's own texts are made with; its first tokens may stand for learned ones.
        tokens: of these texts, [K, L].
        hand_made: tokens [K, L] of each phrase whose features make the zero-shot classifier.
        equal_phrases: whether each phrase's feature is given length 1 before they are averaged.
    """

    backbone: Backbone
    space: LabelSpace
    phrase: str
    tokens: Tensor
    hand_made: tuple[Tensor, ...]
    equal_phrases: bool = True

    @cached_property
    def zero_shot_features(self) -> Tensor:
        """Text features of the hand-made phrases, averaged over phrases and normalised again: [1, K, D]."""
        # Inference tensors could not take part in a later training step.
        with torch.inference_mode(False), torch.no_grad():
            features = torch.stack(
                [
                    encode_text(self.backbone, tokens, normalize=self.equal_phrases)
                    for tokens in self.hand_made
                ]
            )
            return F.normalize(features.mean(0), dim=-1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Classifier:
    """A method for one label space, as it was when this was made; later training does not change it.

    This one has M text classifiers on image features under M templates, and a softmax head.

    Attributes:
        name: of the method.
        texts: what the label space decides.
        text: text features [M, K, D], without gradients; None where they depend on the image.
        context: learned context tokens of the text tower's first layer [M, n, Dt], if there are any.
        vision_prompts: for the image tower, [M, J, n, Dv]; None is the plain tower.
        first_layer: of the image tower that has prompts (from 0).
        pool_prompts: see `encode_image`.
        fusion: how the templates' opinions are fused; None for methods that form none.
        temperature: of the probabilities, see `promptprism.inference.conformal.Calibration`.
    """

    name: str
    texts: Texts
    text: Tensor | None
    context: Tensor | None = None
    vision_prompts: Tensor | None = None
    first_layer: int = 0
    pool_prompts: bool = False
    fusion: FusionRule | None = None
    temperature: float = 1.0

    @property
    def backbone(self) -> Backbone:
        """The frozen model."""
        return self.texts.backbone

    @property
    def space(self) -> LabelSpace:
        """The classes that are told apart."""
        return self.texts.space

    @property
    def evidential(self) -> bool:
        """Whether there are opinions; otherwise there are probabilities only."""
        return self.fusion is not None

    @property
    def zero_shot_features(self) -> Tensor:
        """Text features [1, K, D] of zero-shot CLIP in the same label space."""
        return self.texts.zero_shot_features

    @property
    def by_class(self) -> bool:
        """Whether the logit of a class is that of its text feature alone: a part of them can be asked for."""
        own, plain = type(self), Classifier
        from_features = own.logits is plain.logits and own.finish_logits is plain.finish_logits
        return self.text is not None and from_features

    def image_features(self, views: Tensor) -> Tensor:
        """Image features [M, B, D] of views [M or 1, B, 3, H, W]; of the plain tower, as many as views."""
        return self.finish_features(self.start(views))

    def logits(self, views: Tensor) -> Tensor:
        """Logits [M, B, K], float32, of views [M, B, 3, H, W], or [1, B, 3, H, W] that all templates see."""
        return self.finish_logits(self.start(views))

    def start(self, views: Tensor) -> Tensor:
        """What templates that share a view share of it, states [V, B, S, Dv] of views [V, B, 3, H, W]."""
        return start_image(self.backbone, views, self.first_layer)

    def finish_features(self, states: Tensor, part: slice = slice(None)) -> Tensor:
        """Image features [m, B, D] of what `start` gave, under some of the templates."""
        prompts = None if self.vision_prompts is None else self.vision_prompts[part]
        return finish_image(self.backbone, states, prompts, self.first_layer, self.pool_prompts)

    def finish_logits(self, states: Tensor, part: slice = slice(None)) -> Tensor:
        """Logits [m, B, K] of what `start` gave, under some of the templates."""
        assert self.text is not None
        return self.backbone.logits(self.finish_features(states, part), self.text[part])

    def one_by_one(self, views: Tensor) -> Callable[[int, Tensor], Tensor]:
        """Prepare to ask one template at a time; what templates share is computed here, once.

        Args:
            views: [1, B, 3, H, W].

        Returns:
            A function from a template and indices [b] of images to logits [1, b, K].
        """
        states = self.start(views)
        return lambda template, images: self.finish_logits(states[:, images], slice(template, template + 1))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Class probabilities [B, K] from logits [M, B, K]: softmax of their mean, at the temperature."""
        return (logits.mean(0) / self.temperature).softmax(-1)

    def part_of_opinions(
        self, logits: Tensor, mean: Callable[[], Tensor], strength: Callable[[], Tensor]
    ) -> PartOfOpinion:
        """Opinions [M, B, k] of the templates on some of the classes; of those that are ``by_class``.

        Args:
            logits: of the k classes, [M, B, k].
            mean: gives that of the logits of all classes, [M, B, 1].
            strength: gives the log of the opinions' strengths, [M, B].
        """
        raise NotImplementedError

    def opinions(self, logits: Tensor) -> tuple[Opinion, Opinion]:
        """Opinions of the templates [M, B, K] and the fused one [B, K].

        Raises:
            PromptPrismError: the head is a softmax, which knows no uncertainty.
        """
        raise PromptPrismError(
            f"Method {self.name!r} has no opinions, only probabilities: "
            "opinions come from 'cdc' with head='evidential'."
        )


def on_disk(parts: Iterable[Tensor], classes: int) -> Tensor:
    """Features [M, K, D] of parts [M, k, D], in a file that is gone when nobody looks at it any more.

    Raises:
        PromptPrismError: the disk has no room for it.
    """
    file = tempfile.TemporaryFile()  # noqa: SIM115 - as long as its map
    start, shape = 0, (0, 0, 0)
    try:
        for part in parts:
            templates, count, width = part.shape
            shape = templates, classes, width
            for template, features in enumerate(part.float().cpu().numpy()):
                # Written, not through a map: on a full disk that would end the process.
                file.seek((template * classes + start) * width * features.itemsize)
                file.write(features.tobytes())
            start += count
        file.flush()
    except OSError as error:
        raise PromptPrismError(
            f"the text features of {classes} classes cannot be kept in '{tempfile.gettempdir()}' "
            f"({error.strerror or error}): free some space, or name another folder by TMPDIR"
        ) from error
    return torch.from_numpy(np.memmap(file, np.float32, "c", shape=shape))
