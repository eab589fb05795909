"""A cache of image features that vote for their classes (Tip-Adapter, Zhang et al., ECCV 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from promptprism.methods.classifier import Classifier
from promptprism.prompts import encode_image


@dataclass(frozen=True, eq=False, kw_only=True)
class CacheClassifier(Classifier):
    """Zero-shot CLIP, and a cache.

    Attributes:
        keys: [N, D].
        values: [N, K], one-hot, or 0 where the class is not among the K.
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
    affinity: Tensor,
    values: Tensor,
    zero_shot: Tensor,
    labels: Tensor,
    alpha_most: float,
    beta_most: float,
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
