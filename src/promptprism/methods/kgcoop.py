"""KgCoOp (Yao, Zhang and Xu, Prompt Tuning with Knowledge-guided Context Optimization, CVPR 2023)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from promptprism.methods.base import LearningRate, MethodSettings
from promptprism.methods.classifier import Texts
from promptprism.methods.coop import CoOp, CoOpSettings
from promptprism.methods.objectives import consistency_loss, softmax_loss


class KgCoOpSettings(CoOpSettings):
    """KgCoOp's settings in the base-to-new protocol."""

    method: ClassVar[str] = "kgcoop"
    paper: ClassVar[Mapping[str, Any]] = {"epochs": 100, "batch_size": 128, "lr": 0.002}
    earlier: ClassVar[Mapping[int, Mapping[str, Any]]] = {1: paper}

    lr: LearningRate = 0.02
    knowledge_weight: float = Field(
        default=8.0, ge=0, description="Weight of the distance between learned and hand-made text features."
    )


class KgCoOp(CoOp):
    """CoOp whose text features are held near those of the hand-made phrase."""

    Settings: ClassVar[type[MethodSettings]] = KgCoOpSettings
    settings: KgCoOpSettings

    def forward(
        self, views: Tensor, labels: Tensor, texts: Texts, epoch: int, weights: Tensor | None = None
    ) -> Tensor:
        """Cross-entropy + weight * mean over all classes of 1 - cosine (eq. 6)."""
        text = self.text_features(texts)
        logits = self.backbone.logits(self.image_features(views), self.with_offsets(text, texts.space))
        loss = softmax_loss(logits, labels, weights)
        return loss + self.settings.knowledge_weight * consistency_loss(text, texts.zero_shot_features)
