"""Tip-Adapter and Tip-Adapter-F (Zhang et al., Training-free Adaption of CLIP, ECCV 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from promptprism.data.batches import labels_of
from promptprism.data.names import LabelSpace
from promptprism.data.records import Records
from promptprism.errors import warn
from promptprism.methods.base import (
    BatchSize,
    Epochs,
    LearningRate,
    Method,
    MethodSettings,
    Optimizer,
    Shape,
    Views,
)
from promptprism.methods.classifier import Classifier, Texts
from promptprism.methods.frozen import frozen_features, weights_of
from promptprism.methods.objectives import softmax_loss
from promptprism.prompts import encode_image


class TipAdapterSettings(MethodSettings):
    """Tip-Adapter's settings."""

    method: ClassVar[str] = "tip-adapter"

    epochs: int = Field(default=0, le=0, description="Nothing is trained: a cache is filled.")
    views: Views = "half"
    passes: int = Field(
        default=10, ge=1, description="Views of each training image whose mean feature is its key."
    )
    alpha: float = Field(
        default=1.17, ge=0, description="Weight of the cache, until validation images choose another."
    )
    beta: float = Field(
        default=1.0, ge=0, description="Sharpness of the cache, until validation images choose another."
    )
    alpha_most: float = Field(default=3.0, ge=0, description="Alphas up to here are tried, 20 of them.")
    beta_most: float = Field(default=7.0, ge=0, description="Betas up to here are tried, 200 of them.")

    @property
    def learns(self) -> bool:
        """Always: from images, if only by keeping their features."""
        return True


class TipAdapter(Method):
    """Zero-shot CLIP, and a cache of the training images' features that vote for their classes."""

    Settings: ClassVar[type[MethodSettings]] = TipAdapterSettings
    settings: TipAdapterSettings
    splits = True
    chooses = True
    continues = False
    trained_keys: ClassVar[bool] = False
    keys: Tensor
    labels: Tensor
    alpha_beta: Tensor
    weights: Tensor | None

    @property
    def shape(self) -> Shape:
        """Texts are frozen; so many looks at each training image."""
        return Shape(text_learns=False, looks=self.settings.passes)

    def separable(self, space: LabelSpace, learned: LabelSpace) -> bool:
        """No: only classes that were learned have images in the cache."""
        return False

    @classmethod
    def axes(cls, settings: Any, images: int) -> dict[str, tuple[int | None, ...]]:  # noqa: ARG003
        """A label of each image."""
        return {"labels": (images,)}

    def build(self, seed: int) -> None:
        """Images count equally until there are weights."""
        self.register_buffer("weights", None)

    def weigh(self, images: int) -> None:
        """Make room for a weight of each image."""
        self.weights = torch.zeros(images, device=self.backbone.device)

    def allot(self, classes: int, images: int) -> None:
        """Make room for a key and a label of each image, and for alpha and beta."""
        settings, device = self.settings, self.backbone.device
        keys = torch.zeros(images, self.backbone.embed_dim, device=device)
        if self.trained_keys:
            self.keys = torch.nn.Parameter(keys)
        else:
            self.register_buffer("keys", keys)
        self.register_buffer("labels", torch.zeros(images, dtype=torch.long, device=device))
        self.register_buffer("alpha_beta", torch.tensor([settings.alpha, settings.beta], device=device))

    def prepare(self, texts: Texts, records: Records) -> None:
        """Fill the cache."""
        features = [
            frozen_features(self.backbone, records, self.views[0], self.seed, epoch)
            for epoch in range(self.settings.passes)
        ]
        with torch.no_grad():
            self.keys.copy_(F.normalize(torch.stack(features).mean(0), dim=-1))
            self.labels.copy_(labels_of(records, self.labels.device))
            if self.weights is not None:
                weights = weights_of(records)
                self.weights.copy_(torch.ones(len(records)) if weights is None else weights)

    def forward(
        self, views: Tensor, labels: Tensor, texts: Texts, epoch: int, weights: Tensor | None = None
    ) -> Tensor:
        """Cross-entropy of the logits with alpha and beta as they were given."""
        return softmax_loss(self._classifier(texts, texts.space).logits(views), labels, weights)

    def finish(self, texts: Texts, records: Records, validation: Records) -> None:
        """Choose alpha and beta by validation images."""
        if not validation:
            warn(
                f"{self.name} has no validation images to choose alpha and beta by: it takes "
                f"alpha={self.settings.alpha:g}, beta={self.settings.beta:g}; give a validation split, or "
                "--set alpha=... --set beta=..."
            )
            return
        shown = F.normalize(frozen_features(self.backbone, validation), dim=-1)
        with torch.no_grad():
            zero_shot = self.backbone.logits(shown, texts.zero_shot_features)[0]
            values = self._values(self.labels, len(texts.space))
            most = self.settings.alpha_most, self.settings.beta_most
            found = search(shown @ self.keys.T, values, zero_shot, labels_of(validation, shown.device), *most)
            self.alpha_beta.copy_(torch.tensor(found))

    def classify(self, texts: Texts, learned: LabelSpace | None) -> Classifier:
        """Zero-shot CLIP and the cache; classes that were not learned have no images in it."""
        if not hasattr(self, "keys"):
            return Classifier(name=self.name, texts=texts, text=texts.zero_shot_features)
        return self._classifier(texts, learned or texts.space, self.keys.detach().clone())

    def _classifier(self, texts: Texts, learned: LabelSpace, keys: Tensor | None = None) -> CacheClassifier:
        columns = 1 + torch.tensor(texts.space.places(learned), device=self.labels.device)
        alpha, beta = self.alpha_beta.tolist()
        return CacheClassifier(
            name=self.name,
            texts=texts,
            text=texts.zero_shot_features,
            keys=self.keys if keys is None else keys,
            values=self._values(columns[self.labels], len(texts.space) + 1)[:, 1:],
            alpha=alpha,
            beta=beta,
        )

    def _values(self, labels: Tensor, classes: int) -> Tensor:
        """What each image votes for, [N, K]: its class, as much as it weighs."""
        votes = F.one_hot(labels, classes).float()
        return votes if self.weights is None else votes * self.weights.unsqueeze(-1)


class TipAdapterFSettings(TipAdapterSettings):
    """Tip-Adapter-F's settings."""

    method: ClassVar[str] = "tip-adapter-f"
    schedule: ClassVar[Literal["epochs", "steps"]] = "steps"
    adam_epsilon: ClassVar[float] = 1e-4
    version: ClassVar[int] = 2
    paper: ClassVar[Mapping[str, Any]] = {"epochs": 20, "batch_size": 256, "lr": 0.001}
    earlier: ClassVar[Mapping[int, Mapping[str, Any]]] = {1: paper}

    epochs: Epochs = 10
    batch_size: BatchSize = 16
    optimizer: Optimizer = "adamw"
    lr: LearningRate = 0.001
    weight_decay: float = Field(default=0.01, ge=0, description="Weight decay of the keys.")


class TipAdapterF(TipAdapter):
    """Tip-Adapter whose cache keys are trained further."""

    Settings: ClassVar[type[MethodSettings]] = TipAdapterFSettings
    settings: TipAdapterFSettings
    trained_keys = True


@dataclass(frozen=True, eq=False, kw_only=True)
class CacheClassifier(Classifier):
    """Zero-shot CLIP, and a cache.

    Attributes:
        keys: [N, D].
        values: [N, K], the image's weight at its class, or 0 where the class is not among the K.
        alpha: weight of the cache.
        beta: its sharpness.
    """

    keys: Tensor
    values: Tensor
    alpha: float
    beta: float

    def logits(self, views: Tensor) -> Tensor:
        """Logits [1, B, K] of views [1, B, 3, H, W]."""
        assert self.text is not None
        image = encode_image(self.backbone, views)
        return self.backbone.logits(image, self.text) + self.alpha * cache_logits(
            image @ self.keys.T, self.values, self.beta
        )


def cache_logits(affinity: Tensor, values: Tensor, beta: float) -> Tensor:
    """Votes [.., K] of a cache: the sum over its N images of exp(-beta (1 - affinity)) value (eq. 5).

    Args:
        affinity: cosines [.., N].
        values: [N, K].
        beta: sharpness.
    """
    return torch.exp(-beta * (1 - affinity)) @ values


def search(
    affinity: Tensor, values: Tensor, zero_shot: Tensor, labels: Tensor, alpha_most: float, beta_most: float
) -> tuple[float, float]:
    """The first alpha and beta of a grid of 20 x 200 with the highest accuracy, betas outermost.

    Args:
        affinity: cosines [B, N] of images and keys.
        values: [N, K].
        zero_shot: logits [B, K].
        labels: [B].
        alpha_most: the grid goes from 0.1 to below this.
        beta_most: the same of beta.
    """
    alphas = [0.1 + i * (alpha_most - 0.1) / 20 for i in range(20)]
    best, chosen = -1, (0.0, 0.0)
    for beta in (0.1 + i * (beta_most - 0.1) / 200 for i in range(200)):
        votes = cache_logits(affinity, values, beta)
        right = torch.stack([((zero_shot + alpha * votes).argmax(-1) == labels).sum() for alpha in alphas])
        for alpha, count in zip(alphas, right.tolist(), strict=True):
            if count > best:
                best, chosen = count, (alpha, beta)
    return chosen
