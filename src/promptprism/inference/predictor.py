"""Logits of images in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from promptprism.data.batches import plain_batches, view_batches
from promptprism.data.images import ImageSource
from promptprism.data.records import Record
from promptprism.data.views import make_views
from promptprism.errors import PromptPrismError
from promptprism.inference.early import EarlyOpinions, check_early, early_opinions
from promptprism.methods import Classifier


class Predictor:
    """A classifier that reads its images itself, the next batch while it looks at one."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier

    def logits(self, sources: Sequence[ImageSource], batch_size: int = 32) -> Iterator[Tensor]:
        """Yield logits [M, B, K] of the images, in their order, every template seeing the plain image.

        Raises:
            PromptPrismError: an image cannot be read.
        """
        for views in self._views(sources, batch_size):
            with torch.no_grad():
                logits = self.classifier.logits(views)
            yield logits

    def early_opinions(
        self, sources: Sequence[ImageSource], margin: float, batch_size: int = 32
    ) -> Iterator[EarlyOpinions]:
        """Yield fused opinions of as many templates as each image takes; see `promptprism.inference.early`.

        Raises:
            PromptPrismError: an image cannot be read, the method has no opinions, or the margin is
                negative.
        """
        check_early(self.classifier, margin)
        for views in self._views(sources, batch_size):
            yield early_opinions(self.classifier, views, margin)

    def _views(self, sources: Sequence[ImageSource], batch_size: int) -> Iterator[Tensor]:
        backbone = self.classifier.backbone
        make = make_views(("test",), backbone.image_size, backbone.mean, backbone.std)
        for _, views in view_batches(sources, plain_batches(len(sources), batch_size), make):
            yield views.to(backbone.device)


def check_labels(records: Sequence[Record], classes: int) -> None:
    """Raise PromptPrismError unless all labels lie in 0..classes-1."""
    for place, record in enumerate(records):
        if not 0 <= record.label < classes:
            raise PromptPrismError(
                f"label {record.label} of image {place} does not fit a method for {classes} classes: "
                "build it for the label space of the data"
            )
