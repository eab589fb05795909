"""CLIP-LoRA (Zanella and Ben Ayed, Low-Rank Few-Shot Adaptation of Vision-Language Models, CVPRW 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from promptprism.backbones import Backbone
from promptprism.data.names import LabelSpace
from promptprism.errors import PromptPrismError
from promptprism.methods.base import (
    BatchSize,
    LearningRate,
    Method,
    MethodSettings,
    Optimizer,
    Shape,
    WeightDecay,
)
from promptprism.methods.classifier import Classifier, Texts
from promptprism.methods.objectives import softmax_loss
from promptprism.prompts import encode_image, encode_text
from promptprism.prompts.learner import local_generator
from promptprism.prompts.low_rank import LowRankLearner, check_blocks


class ClipLoraSettings(MethodSettings):
    """CLIP-LoRA's settings in its few-shot experiments."""

    method: ClassVar[str] = "clip-lora"
    schedule: ClassVar[Literal["epochs", "steps"]] = "steps"
    lowest_lr: ClassVar[float] = 1e-6

    epochs: int = Field(
        default=160,
        ge=0,
        description="Passes over the training images. The paper takes 500 steps per shot: 16,000 / K epochs "
        "for K classes, so that 160 are its own for 100 classes.",
    )
    batch_size: BatchSize = 32
    optimizer: Optimizer = "adamw"
    lr: LearningRate = 2e-4
    weight_decay: WeightDecay = 0.01
    rank: int = Field(default=2, ge=1, description="r, of the updates.")
    alpha: float = Field(default=1.0, gt=0, description="The updates are times alpha / sqrt(r).")
    dropout: float = Field(
        default=0.25, ge=0, lt=1, description="Share of an update's inputs that is left out in training."
    )


class ClipLora(Method):
    """Low-rank updates of queries, keys and values in all layers of both towers, merged to predict."""

    name = ClipLoraSettings.method
    Settings: ClassVar[type[MethodSettings]] = ClipLoraSettings
    settings: ClipLoraSettings

    def build(self, seed: int) -> None:
        """Make the updates.

        Raises:
            PromptPrismError: towers that cannot have them, or a rank above a width.
        """
        settings, backbone = self.settings, self.backbone
        check_blocks(backbone, self.name)
        if settings.rank > (width := min(backbone.text_width, backbone.vision_width)):
            raise PromptPrismError(
                f"rank={settings.rank} of method {self.name!r} is above the width {width} of backbone "
                f"{backbone.name!r}, so that it would be low no more: set rank to {width} or less."
            )
        chosen = settings.rank, settings.alpha, settings.dropout, seed
        self.text = LowRankLearner(backbone.text, *chosen, "text").to(backbone.device)
        self.vision = LowRankLearner(backbone.vision, *chosen, "image").to(backbone.device)
        self._epoch, self._generator = -1, torch.Generator(backbone.device)

    @property
    def shape(self) -> Shape:
        """Gradients go through both towers."""
        return Shape(image_learns=True)

    def forward(
        self, views: Tensor, labels: Tensor, texts: Texts, epoch: int, weights: Tensor | None = None
    ) -> Tensor:
        """Cross-entropy."""
        if epoch != self._epoch:  # as a resumed run begins it
            self._epoch = epoch
            purpose = f"what epoch {epoch} leaves out"
            self._generator = local_generator(self.seed, purpose, self.backbone.device)
        generator = self._generator if self.training else None
        adapted = self.backbone.with_towers(
            self.text.join(self.backbone.text, generator), self.vision.join(self.backbone.vision, generator)
        )
        # What is computed a second time in the backward pass would leave out something else.
        text = encode_text(adapted, texts.tokens, memory_mb=math.inf)
        return softmax_loss(self.backbone.logits(encode_image(adapted, views), text), labels, weights)

    def classify(self, texts: Texts, learned: LabelSpace | None) -> Classifier:
        """Zero-shot CLIP with other weights."""
        backbone = self.backbone
        merged = backbone.with_towers(self.text.merge(backbone.text), self.vision.merge(backbone.vision))
        text = encode_text(merged, texts.tokens)
        return MergedClassifier(name=self.name, texts=texts, text=text, merged=merged)


@dataclass(frozen=True, eq=False, kw_only=True)
class MergedClassifier(Classifier):
    """A text classifier on the features of a backbone with other weights.

    Attributes:
        merged: that backbone.
    """

    merged: Backbone

    @property
    def backbone(self) -> Backbone:
        """The backbone with what was learned in its weights."""
        return self.merged
