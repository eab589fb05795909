"""MMRL (Guo and Gu, Multi-Modal Representation Learning for Vision-Language Models, CVPR 2025)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from promptprism.data.names import LabelSpace
from promptprism.errors import PromptPrismError
from promptprism.methods.base import BatchSize, Epochs, LearningRate, MethodSettings, Optimizer, Shape, Views
from promptprism.methods.classifier import Classifier, Texts
from promptprism.methods.learner import LearnerMethod, Readings, weighted
from promptprism.methods.objectives import consistency_loss, softmax_loss
from promptprism.prompts import encode_image, encode_text
from promptprism.prompts.representation import RepresentationLearner, both_features, finish_both

Tokens = Annotated[int, Field(ge=1, description="R, representation tokens in each tower.")]
Width = Annotated[
    int, Field(ge=1, description="Of the space that both towers' representation tokens are made from.")
]
FirstLayer = Annotated[
    int | None,
    Field(
        ge=2,
        description="Layer (from 1) that takes the first representation tokens, those above taking others up "
        "to the last; None is the middle one, 6 of 12.",
    ),
]


class MmrlSettings(MethodSettings):
    """MMRL's settings in the base-to-new protocol; `regularisation` is another for each data set there."""

    method: ClassVar[str] = "mmrl"
    version: ClassVar[int] = 2
    paper: ClassVar[Mapping[str, Any]] = {"epochs": 10, "batch_size": 4, "lr": 0.001}
    earlier: ClassVar[Mapping[int, Mapping[str, Any]]] = {1: paper}

    epochs: Epochs = 10
    batch_size: BatchSize = 16
    optimizer: Optimizer = "adamw"
    lr: LearningRate = 0.002
    views: Views = "half"
    tokens: Tokens = 5
    width: Width = 512
    first_layer: FirstLayer = None
    alpha: float = Field(
        default=0.7, ge=0, le=1, description="Weight of the class token's logits beside the tokens' own."
    )
    regularisation: float = Field(
        default=0.5,
        ge=0,
        description="lambda, of the distances of both features to the frozen ones; the paper's is 0.01 to 7.",
    )


class Mmrl(LearnerMethod):
    """Representation tokens in the upper layers; classes that were not learned get the class token alone."""

    Settings: ClassVar[type[MethodSettings]] = MmrlSettings
    settings: MmrlSettings
    splits = True

    @classmethod
    def axes(cls, settings: Any, images: int) -> dict[str, tuple[int | None, ...]]:  # noqa: ARG003
        """The representation tokens."""
        return {"learner.tokens": (getattr(settings, "templates", 1), settings.tokens, settings.width)}

    def build(self, seed: int) -> None:
        """Make the learner.

        Raises:
            PromptPrismError: towers that cannot have such tokens, or have too few layers.
        """
        super().build(seed)
        settings, backbone = self.settings, self.backbone
        vision = backbone.vision
        if not (backbone.text.causal and vision.reads_one and vision.norm is not None):
            raise PromptPrismError(
                f"{self.label.capitalize()} needs a causal text tower and an image tower of plain blocks "
                "that is read at its class token, as CLIP's own; those of backbone "
                f"{backbone.name!r} are others. Take a CLIP ViT, or learn prompts (maple, coop)."
            )
        layers = backbone.prompt_layers
        first = max(2, layers // 2) if settings.first_layer is None else settings.first_layer
        if first > layers:
            raise PromptPrismError(
                f"first_layer={first} of {self.label} is above the {layers} layers of backbone "
                f"{backbone.name!r}: set it to 2 to {layers}."
            )
        self.first_layer = first - 1
        self.learner = RepresentationLearner(
            backbone, settings.tokens, settings.width, layers - self.first_layer, seed, self.templates
        )

    @property
    def shape(self) -> Shape:
        """Tokens behind the patches of the upper layers, and frozen features of each image."""
        tokens = self.settings.tokens
        return Shape(self.templates, vision_prompts=tokens, vision_from=self.first_layer, plain_images=1)

    def separable(self, space: LabelSpace, learned: LabelSpace) -> bool:
        """No: classes are told apart otherwise where all were learned."""
        return False

    def text_features(self, texts: Texts) -> Tensor:
        """Text features [M, K, D]."""
        tokens, _ = self.learner()
        return encode_text(self.backbone, texts.tokens, tokens, insert_at=self.first_layer)

    def features(
        self, views: Tensor, texts: Texts, epoch: int, shown: Tensor | None = None
    ) -> tuple[Tensor, Readings]:
        """Text features, and what is read at the class token and at the representation tokens."""
        text, (_, tokens), alpha = self.text_features(texts), self.learner(), self.settings.alpha
        first, projection = self.first_layer, self.learner.projection
        image, own = both_features(self.backbone, views, tokens, first, projection, shown)
        return text, [(alpha, image), (1 - alpha, own)]

    def contexts(self) -> Tensor:
        """The tokens in their own space."""
        return self.learner.tokens.unsqueeze(1)

    def forward(
        self, views: Tensor, labels: Tensor, texts: Texts, epoch: int, weights: Tensor | None = None
    ) -> Tensor:
        """Both cross-entropies, and the distances of both features to the frozen ones (eqs. 15-18)."""
        text, readings = self.features(views, texts, epoch)
        with torch.no_grad():
            frozen = encode_image(self.backbone, views)
        logits = self.logits(readings, text, texts.space)
        loss = weighted(logits, lambda one: softmax_loss(one, labels, weights))
        distance = consistency_loss(readings[0][1], frozen, weights=weights)
        distance = distance + consistency_loss(text, texts.zero_shot_features)
        return loss + self.settings.regularisation * distance

    def classify(self, texts: Texts, learned: LabelSpace | None) -> Classifier:
        """The class token's classifier, joined by the representation tokens' if all classes were learned."""
        _, tokens = self.learner()
        known = learned is None or set(texts.space.keys) <= set(learned.keys)
        return MmrlClassifier(
            name=self.name,
            texts=texts,
            text=self.with_offsets(self.text_features(texts), texts.space, learned),
            vision_prompts=tokens,
            first_layer=self.first_layer,
            projection=self.learner.projection.detach().clone(),
            alpha=self.settings.alpha if known else 1.0,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class MmrlClassifier(Classifier):
    """Logits of the class token, and of the representation tokens.

    Attributes:
        projection: of the tokens' states to the common space, [M, Dv, D].
        alpha: weight of the class token's logits; 1 takes them alone.
    """

    projection: Tensor
    alpha: float

    def finish_logits(self, states: Tensor, part: slice = slice(None)) -> Tensor:
        """Logits [m, B, K] of what `start` gave, under some of the templates."""
        if self.alpha == 1:
            return super().finish_logits(states, part)
        assert self.text is not None and self.vision_prompts is not None
        tokens, projection = self.vision_prompts[part], self.projection[part]
        both = finish_both(self.backbone, states, tokens, self.first_layer, projection)
        image, own = (self.backbone.logits(features, self.text[part]) for features in both)
        return self.alpha * image + (1 - self.alpha) * own
