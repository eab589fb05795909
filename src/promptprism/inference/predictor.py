"""Logits of images in batches; the text features of a label space are made once and never stale."""

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
from promptprism.methods import Method
from promptprism.methods.base import Kept


class Predictor:
    """A method at test time, with the text features of its label space.

    Text features are kept from call to call; no way of changing a method can leave them stale, see `Kept`.
    """

    def __init__(self, method: Method) -> None:
        self.method = method
        self._text = Kept()

    def text_features(self) -> Tensor:
        """Text features [M, K, D] of the label space as it is now."""
        return self._text.get(self.method, self.method.text_features)

    def logits(self, sources: Sequence[ImageSource], batch_size: int = 32) -> Iterator[Tensor]:
        """Yield logits [M, B, K] of the images, in their order, every template seeing the plain image.

        Raises:
            PromptPrismError: an image cannot be read.
        """
        text = self.text_features() if self.method.text_is_fixed else None
        for views in self._views(sources, batch_size):
            with torch.no_grad():
                logits = self.method(views, text)
            yield logits

    def early_opinions(
        self, sources: Sequence[ImageSource], margin: float, batch_size: int = 32
    ) -> Iterator[EarlyOpinions]:
        """Yield fused opinions of as many templates as each image takes; see `promptprism.inference.early`.

        Raises:
            PromptPrismError: an image cannot be read, the method has no opinions, or the margin is
                negative.
        """
        check_early(self.method, margin)
        text = self.text_features()
        for views in self._views(sources, batch_size):
            yield early_opinions(self.method, views, text, margin)

    def _views(self, sources: Sequence[ImageSource], batch_size: int) -> Iterator[Tensor]:
        backbone = self.method.backbone
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
