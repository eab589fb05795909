"""CLIP-LoRA (Zanella and Ben Ayed, Low-Rank Few-Shot Adaptation of Vision-Language Models, CVPRW 2024)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from promptprism.backbones import Backbone
from promptprism.data.names import LabelSpace
from promptprism.errors import PromptPrismError
from promptprism.methods.base import BatchSize, LearningRate, MethodSettings, Optimizer, Shape, WeightDecay
from promptprism.methods.classifier import Classifier, Texts
from promptprism.methods.learner import LearnerMethod, Readings
from promptprism.prompts import encode_image, encode_text, finish_image
from promptprism.prompts.low_rank import LowRankLearner, check_blocks

Rank = Annotated[int, Field(ge=1, description="r, of the low-rank updates.")]
Dropout = Annotated[
    float, Field(ge=0, lt=1, description="Share of a low-rank update's inputs that is left out in training.")
]


class ClipLoraSettings(MethodSettings):
    """CLIP-LoRA's settings in its few-shot experiments."""

    method: ClassVar[str] = "clip-lora"
    schedule: ClassVar[Literal["epochs", "steps"]] = "steps"
    lowest_lr: ClassVar[float] = 1e-6
    version: ClassVar[int] = 2
    paper: ClassVar[Mapping[str, Any]] = {"epochs": 160, "batch_size": 32, "lr": 0.0002}
    earlier: ClassVar[Mapping[int, Mapping[str, Any]]] = {1: paper}

    epochs: int = Field(
        default=10,
        ge=0,
        description="Passes over the training images. The paper takes 500 steps per shot: 16,000 / K epochs "
        "for K classes, so that 160 are its own for 100 classes.",
    )
    batch_size: BatchSize = 16
    optimizer: Optimizer = "adamw"
    lr: LearningRate = 4e-4
    weight_decay: WeightDecay = 0.01
    rank: Rank = 2
    alpha: float = Field(default=1.0, gt=0, description="The updates are times alpha / sqrt(r).")
    dropout: Dropout = 0.25


class ClipLora(LearnerMethod):
    """Low-rank updates of queries, keys and values in all layers of both towers, merged to predict."""

    Settings: ClassVar[type[MethodSettings]] = ClipLoraSettings
    settings: ClipLoraSettings

    def build(self, seed: int) -> None:
        """Make the updates.

        Raises:
            PromptPrismError: towers that cannot have them, or a rank above a width.
        """
        super().build(seed)
        settings, backbone = self.settings, self.backbone
        check_blocks(backbone, self.label)
        if settings.rank > (width := min(backbone.text_width, backbone.vision_width)):
            raise PromptPrismError(
                f"rank={settings.rank} of {self.label} is above the width {width} of backbone "
                f"{backbone.name!r}, so that it would be low no more: set rank to {width} or less."
            )
        chosen = settings.rank, settings.alpha, settings.dropout, seed
        count, device = self.templates, backbone.device
        self.text = LowRankLearner(backbone.text, *chosen, "text", count).to(device)
        self.vision = LowRankLearner(backbone.vision, *chosen, "image", count).to(device)

    @classmethod
    def axes(cls, settings: Any, images: int) -> dict[str, tuple[int | None, ...]]:  # noqa: ARG003
        """A of both towers."""
        shape = getattr(settings, "templates", 1), None, 3, settings.rank, None
        return {"text.down": shape, "vision.down": shape}

    @property
    def shape(self) -> Shape:
        """Gradients go through both towers."""
        return Shape(templates=self.templates, image_learns=True)

    def contexts(self) -> Tensor:
        """The rows of A in the text tower, which span what an update sees of its input."""
        return self.text.down.flatten(1, 2)

    def features(
        self, views: Tensor, texts: Texts, epoch: int, shown: Tensor | None = None
    ) -> tuple[Tensor, Readings]:
        """Features with the updates beside the weights; M of them share the products with these."""
        backbone, purpose = self.backbone, "what epoch {} leaves out"
        generator = self.draws(purpose, epoch, backbone.device) if self.training else None
        adapted = backbone.with_towers(
            self.text.join(backbone.text, generator), self.vision.join(backbone.vision, generator)
        )
        # What is computed a second time in the backward pass would leave out something else.
        text = encode_text(adapted, texts.tokens, memory_mb=math.inf)
        return text, [(1.0, encode_image(adapted, views, shown=shown))]

    def text_features(self, texts: Texts) -> Tensor:
        """Text features [M, K, D] of the merged towers."""
        towers = (self.text.merge(self.backbone.text, m) for m in range(self.templates))
        merged = [self.backbone.with_towers(tower, self.backbone.vision) for tower in towers]
        return torch.cat([encode_text(one, texts.tokens) for one in merged])

    def classify(self, texts: Texts, learned: LabelSpace | None) -> Classifier:
        """Zero-shot CLIP with other weights."""
        backbone, text = self.backbone, self.text_features(texts)
        towers = [self.vision.merge(backbone.vision, m) for m in range(self.templates)]
        return MergedClassifier(
            name=self.name,
            texts=texts,
            text=self.with_offsets(text, texts.space, learned),
            merged=tuple(backbone.with_towers(backbone.text, tower) for tower in towers),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class MergedClassifier(Classifier):
    """Text classifiers on the features of image towers with other weights.

    Attributes:
        merged: M backbones, each with the image tower of a template; the stem is the frozen one's.
    """

    merged: tuple[Backbone, ...]

    def finish_features(self, states: Tensor, part: slice = slice(None)) -> Tensor:
        """Image features [m, B, D] of what `start` gave, under some of the templates."""
        some = self.merged[part]
        return torch.cat(
            [
                finish_image(one, states if len(states) == 1 else states[place : place + 1])
                for place, one in enumerate(some)
            ]
        )
