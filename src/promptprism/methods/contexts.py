"""What training photos show beside their classes, and image features with less of that.

The front-door adjustment asks what semantics s mean for y in the company of every other image x':
P(y | do(x)) = sum_s P(s | x) sum_x' P(y | s, x') P(x'). Here s is what an image feature f has of its object,
and x' is what n training photos have beside theirs: how far their features are from the mean of their class.
With both taken for Gaussian, s is known from f by a Wiener filter (1949):

    f = m + o + c,  o ~ N(0, t I),  c ~ N(0, C)   ->   E[o | f] = (I + C / t)^-1 (f - m)

with m the mean feature, C the covariance of the n contexts, t its mean variance. By itself this loses what
classes have in common with contexts: it is made half as long as f - m, on average over the n, and added to f.
That, and t, were chosen on the development sets. No image is looked at twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from promptprism.data.batches import plain_batches, view_batches
from promptprism.data.records import Records
from promptprism.data.views import make_views

if TYPE_CHECKING:
    from promptprism.methods.classifier import Classifier

#: Bytes that an adapter keeps of its contexts at most.
ROOM = 2**20
_ADDED, _BATCH = 0.5, 32


@dataclass(frozen=True, eq=False)
class Contexts:
    """The contexts of n training photos under M templates.

    Attributes:
        mean: of the image features, [M, D], float32.
        residuals: of each photo's feature to its class's mean, [M, n, D], float16.
    """

    mean: Tensor
    residuals: Tensor

    @classmethod
    def empty(cls, templates: int, count: int, width: int) -> Contexts:
        """Room for so many contexts of D numbers under M templates, or as many as 1 MiB holds."""
        count = min(count, ROOM // (2 * templates * width))
        return cls(torch.zeros(templates, width), torch.zeros(templates, count, width, dtype=torch.float16))

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, count: int) -> Contexts:
        """Those of so many photos, evenly over all and no more than there is room for.

        Args:
            features: of N training photos, [M, N, D].
            labels: [N], numbers from 0.
            count: at most so many.
        """
        templates, _, width = features.shape
        counts = labels.bincount().clamp(min=1)[:, None]
        sums = features.new_zeros(templates, len(counts), width).index_add_(1, labels, features)
        residuals = (features - (sums / counts)[:, labels]).half()
        return cls(features.mean(1), residuals).some(min(count, ROOM // (2 * templates * width)))

    def some(self, count: int) -> Contexts:
        """At most so many of them, evenly over all; room that was not used is none."""
        used = self.residuals[:, self.residuals.any(dim=2).any(dim=0)]
        chosen = torch.linspace(0, used.shape[1] - 1, min(count, used.shape[1]), device=used.device).long()
        return Contexts(self.mean, used[:, chosen])

    def filter(self) -> ContextFilter:
        """What takes less of a context from a feature."""
        residuals = self.residuals.float()
        covariance = residuals.mT @ residuals / residuals.shape[1]
        variance = covariance.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None]
        eye = torch.eye(covariance.shape[1], device=covariance.device)
        kept = torch.linalg.inv(eye + covariance / variance)
        length = residuals.norm(dim=-1).mean(-1) / (residuals @ kept).norm(dim=-1).mean(-1)
        return ContextFilter(self.mean, _ADDED * kept * length[:, None, None])


def plain_features(classifier: Classifier, records: Records) -> Tensor:
    """Image features [M, N, D] of N records, plainly seen, under a classifier's templates."""
    backbone = classifier.backbone
    make = make_views(("test",), backbone.image_size, backbone.mean, backbone.std)
    sources = [record.source for record in records]
    batches = view_batches(sources, plain_batches(len(sources), _BATCH), make)
    return torch.cat([classifier.image_features(views.to(backbone.device)) for _, views in batches], dim=1)


@dataclass(frozen=True, eq=False)
class ContextFilter:
    """Adds to a feature what it has of its object.

    Attributes:
        mean: [M, D].
        kept: [M, D, D].
    """

    mean: Tensor
    kept: Tensor

    def __call__(self, features: Tensor, part: slice = slice(None)) -> Tensor:
        """Features [m, B, D] of length 1 of such, [m or 1, B, D], under some of the templates."""
        own = (features - self.mean[part, None]) @ self.kept[part]
        return F.normalize(features + own, dim=-1)
