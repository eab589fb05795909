"""Methods whose prompts do not depend on the image: M templates, softmax cross-entropy. CDC builds on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from promptprism.data.views import view_names
from promptprism.methods.base import Method, MethodSettings
from promptprism.prompts import PromptLearner, encode_image, encode_text, finish_image, start_image
from promptprism.prompts.text import TEXT_MEMORY_MB

#: MaPLe's depth in the base-to-new protocol.
_USUAL_DEPTH = 9


class TemplateSettings(MethodSettings):
    """Where the prompts of M templates enter the towers, and how they start."""

    templates: int = Field(default=1, ge=1, description="M, the number of templates.")
    depth: int | None = Field(
        default=None,
        ge=1,
        description="J, the number of layers with prompts of their own; None is 9, or all layers of a "
        "smaller backbone. MaPLe uses 3 when trained on ImageNet and tested elsewhere.",
    )
    coupled: bool = Field(default=True, description="Map the text prompts of each layer to vision prompts.")
    context_length: int = Field(default=2, ge=1, description="n, context tokens per layer.")
    initial_phrase: str = Field(
        default="a photo of a {}.",
        description="The context starts as the embeddings of its first n tokens, the rest stays text.",
    )
    phrase_init: bool = Field(
        default=True,
        description="If false, the context starts from N(0, 0.02) and stands before the bare class name.",
    )
    vision_from: int = Field(
        default=0,
        ge=0,
        description="L0, vision layers below the first vision prompts: cheaper to train and, the templates "
        "sharing them, to predict with. 0 is MaPLe.",
    )
    text_memory_mb: float = Field(
        default=TEXT_MEMORY_MB,
        ge=0,
        description="MiB that the text tower may keep for the backward pass; classes beyond it are computed "
        "twice instead. Changes the last digits at most.",
    )


class TemplateMethod(Method):
    """M templates of learned prompts on a frozen CLIP, one classifier each."""

    Settings: ClassVar[type[MethodSettings]] = TemplateSettings
    settings: TemplateSettings

    def build(self, seed: int) -> None:
        """Make the learner; choose the views."""
        settings, backbone = self.settings, self.backbone
        self.views = view_names(settings.views, settings.templates)
        layers = min(backbone.text_layers, backbone.vision_layers)
        self.learner = PromptLearner(
            backbone,
            templates=settings.templates,
            context_length=settings.context_length,
            depth=min(_USUAL_DEPTH, layers) if settings.depth is None else settings.depth,
            coupled=settings.coupled,
            vision_from=settings.vision_from,
            phrase=settings.initial_phrase,
            phrase_init=settings.phrase_init,
            seed=seed,
        )

    @property
    def prompt_phrase(self) -> str:
        """The learner's phrase, whose first n tokens are placeholders."""
        return self.learner.phrase

    def text_features(self) -> Tensor:
        """Text features [M, K, D]."""
        memory_mb = self.settings.text_memory_mb
        return encode_text(self.backbone, self.tokens, self.learner.context, memory_mb)

    def image_features(self, views: Tensor) -> Tensor:
        """Image features [M, B, D] of views [M or 1, B, 3, H, W]; uncoupled, as many as there are views."""
        _, vision_prompts = self.learner()
        return encode_image(self.backbone, views, vision_prompts, self.settings.vision_from)

    def forward(self, views: Tensor, text: Tensor | None = None) -> Tensor:
        """Logits [M, B, K] of views [M or 1, B, 3, H, W]."""
        text = self.text_features() if text is None else text
        return self.logits(self.image_features(views), text)

    def one_by_one(self, views: Tensor, text: Tensor) -> Callable[[int, Tensor], Tensor]:
        """Prepare to ask one template at a time; what templates share is computed here, once.

        Args:
            views: [1, B, 3, H, W].
            text: text features [M, K, D].

        Returns:
            A function from a template and indices [b] of images to logits [1, b, K].
        """
        first_layer = self.settings.vision_from
        states = start_image(self.backbone, views, first_layer)
        _, prompts = self.learner()

        def ask(template: int, images: Tensor) -> Tensor:
            own = None if prompts is None else prompts[template : template + 1]
            image = finish_image(self.backbone, states[:, images], own, first_layer)
            return self.logits(image, text[template : template + 1])

        return ask

    def loss(self, views: Tensor, labels: Tensor, epoch: int) -> Tensor:  # noqa: ARG002
        """Cross-entropy, averaged over templates and images."""
        return softmax_loss(self(views), labels)


def softmax_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits [M, B, K] with labels [B], averaged over templates and images."""
    return F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)))
