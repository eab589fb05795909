"""ProGrad (Zhu et al., Prompt-aligned Gradient for Prompt Tuning, ICCV 2023)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from promptprism.data.names import check_phrase
from promptprism.methods.base import LearningRate, MethodSettings, Shape
from promptprism.methods.classifier import Texts
from promptprism.methods.coop import CoOp, CoOpSettings
from promptprism.methods.objectives import image_mean, softmax_loss
from promptprism.methods.templated import NoOffsets


class ProGradSettings(CoOpSettings):
    """ProGrad's settings in its base-to-new experiments, which are with a ResNet-50 and 4 shots."""

    method: ClassVar[str] = "prograd"
    paper: ClassVar[Mapping[str, Any]] = {"epochs": 100, "batch_size": 32, "lr": 0.002}
    earlier: ClassVar[Mapping[int, Mapping[str, Any]]] = {1: paper}

    class_offsets: NoOffsets = False
    lr: LearningRate = 0.02
    context_length: int = Field(default=16, ge=1, description="n, context tokens, shared by all classes.")
    initial_phrase: str = Field(
        default="a photo of a {}.",
        description="The context starts as zeros that end in its last n tokens before the class name.",
    )
    conflict_weight: float = Field(
        default=1.0,
        ge=0,
        description="Share of the conflicting part of the gradient that is taken away; 0.8 in some few-shot "
        "experiments.",
    )
    teacher_temperature: float = Field(
        default=1.0, gt=0, description="T, divides the logits of both classifiers in the KL term."
    )


class ProGrad(CoOp):
    """CoOp whose gradient loses what goes against zero-shot CLIP's knowledge."""

    Settings: ClassVar[type[MethodSettings]] = ProGradSettings
    settings: ProGradSettings

    def build(self, seed: int) -> None:
        """Make the learner; the context starts as zeros and the phrase's words."""
        own = self.settings
        self.settings = own.model_copy(update={"phrase_init": False})
        super().build(seed)
        self.settings = own
        if not own.phrase_init:
            return
        backbone, n = self.backbone, own.context_length
        before_class = check_phrase(own.initial_phrase).partition("{}")[0]
        first, words = backbone.first_word, backbone.count_tokens(before_class)
        tokens = backbone.tokenize([before_class])[0, first : first + words][-n:]
        with torch.no_grad():
            self.learner.context.zero_()
            self.learner.context[0, 0, n - len(tokens) :] = backbone.text.token_embedding(tokens)

    @property
    def shape(self) -> Shape:
        """CoOp's, with a second gradient."""
        return replace(super().shape, backward_passes=2)

    def losses(
        self, views: Tensor, labels: Tensor, texts: Texts, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy, and the distillation loss against zero-shot CLIP (eq. 4, without the constant)."""
        image, heat = self.image_features(views), self.settings.teacher_temperature
        logits = self.backbone.logits(image, self.text_features(texts))
        teacher = self.backbone.logits(image, texts.zero_shot_features) / heat
        general = -(teacher.softmax(-1) * (logits / heat).log_softmax(-1)).sum(-1)
        return softmax_loss(logits, labels, weights), heat**2 * image_mean(general, weights)

    def forward(
        self, views: Tensor, labels: Tensor, texts: Texts, epoch: int, weights: Tensor | None = None
    ) -> Tensor:
        """Cross-entropy, with a gradient that is `aligned`."""
        loss, general = self.losses(views, labels, texts, weights)
        if not loss.requires_grad:
            return loss
        context = self.learner.context
        own, known = (torch.autograd.grad(one, context, retain_graph=True)[0] for one in (loss, general))
        # Linear in the context, so that its gradient is the one wanted; its value is 0.
        surrogate = (context * aligned(own, known, self.settings.conflict_weight)).sum()
        return loss.detach() + surrogate - surrogate.detach()


def aligned(own: Tensor, known: Tensor, weight: float = 1.0) -> Tensor:
    """A gradient g without (a share of) its part against h: g - weight (g·h / h·h) h if g·h < 0 (eq. 5).

    Args:
        own: g, of the task's loss.
        known: h, of the distillation loss, of the same shape; both are taken as one vector.
        weight: the share.
    """
    product = (own * known).sum()
    return own - weight * product.clamp(max=0) / known.square().sum().clamp(min=1e-30) * known
