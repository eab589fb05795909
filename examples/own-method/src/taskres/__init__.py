"""TaskRes (Yu et al., Task Residual for Tuning Vision-Language Models, CVPR 2023) in PromptPrism."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from promptprism.data.names import LabelSpace
from promptprism.methods import Classifier, Method, MethodSettings, Shape, Texts
from promptprism.prompts import encode_image


class TaskResSettings(MethodSettings):
    """What a user may choose; each field becomes an option of `promptprism fit --set`."""

    method: ClassVar[str] = "taskres"

    epochs: int = Field(default=20, ge=0, description="Passes over the training images.")
    batch_size: int = Field(default=32, ge=1, description="Images per training step.")
    scale: float = Field(default=0.5, gt=0, description="alpha, by which the residual is multiplied.")


class TaskRes(Method):
    """A residual beside the frozen text feature of each class learned."""

    name = TaskResSettings.method
    Settings: ClassVar[type[MethodSettings]] = TaskResSettings
    settings: TaskResSettings
    by_class: ClassVar[frozenset[str]] = frozenset({"residual"})
    """So that `fit --from` puts each class's residual where its class is now."""

    @property
    def shape(self) -> Shape:
        """Steps go through neither tower: what a step costs is the image's features."""
        return Shape(text_learns=False)

    def allot(self, classes: int, images: int) -> None:  # noqa: ARG002
        """Make room for the residuals [1, K, D]; they start at 0, which is zero-shot CLIP."""
        size = (1, classes, self.backbone.embed_dim)
        self.residual = nn.Parameter(torch.zeros(size, device=self.backbone.device))

    def forward(self, views: Tensor, labels: Tensor, texts: Texts, epoch: int) -> Tensor:  # noqa: ARG002
        """Cross-entropy of images [1, B, 3, H, W] with labels [B]."""
        image = encode_image(self.backbone, views)
        logits = self.backbone.logits(image, self.adapted(texts.zero_shot_features, self.residual))
        return F.cross_entropy(logits[0], labels)

    def adapted(self, text: Tensor, residual: Tensor) -> Tensor:
        """Text features [1, K, D] with their residuals [1, K, D] (eq. 4), of length 1."""
        return F.normalize(text + self.settings.scale * residual, dim=-1)

    def classify(self, texts: Texts, learned: LabelSpace | None) -> Classifier:
        """Classes that were learned have a residual, others are zero-shot CLIP's."""
        text = texts.zero_shot_features
        if hasattr(self, "residual"):
            rows = torch.tensor((learned or texts.space).places(texts.space), device=text.device)
            residual = self.residual[:, rows] * (rows >= 0).unsqueeze(-1)
            text = self.adapted(text, residual)
        return Classifier(name=self.name, texts=texts, text=text)
