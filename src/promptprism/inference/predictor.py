"""Logits of images in batches."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from promptprism.data.batches import plain_batches, view_batches
from promptprism.data.images import ImageSource
from promptprism.data.records import Record
from promptprism.data.views import make_views
from promptprism.errors import PromptPrismError
from promptprism.evidence import Opinion
from promptprism.inference.early import EarlyOpinions, check_early, early_opinions
from promptprism.methods import Classifier

#: Images that cannot be read: the place of each, and why.
Unread = dict[int, str]


class Predictor:
    """A classifier that reads its images itself, the next batch while it looks at one."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier

    def logits(
        self, sources: Sequence[ImageSource], batch_size: int = 32, unread: Unread | None = None
    ) -> Iterator[Tensor]:
        """Yield logits [M, B, K] of the images, in their order, every template seeing the plain image.

        Args:
            sources: the images.
            batch_size: B of all but the last.
            unread: images that cannot be read are put in here, index and reason, and left out.

        Raises:
            PromptPrismError: an image cannot be read (none of them, where ``unread`` is given), or the answer
                for one is not finite.
        """
        for batch, views in self.views(sources, batch_size, unread):
            with torch.no_grad():
                logits = self.classifier.logits(views)
            check_finite(logits, [sources[i] for i in batch])
            yield logits
        _refuse_none(sources, unread)

    def early_opinions(
        self,
        sources: Sequence[ImageSource],
        margin: float,
        batch_size: int = 32,
        unread: Unread | None = None,
    ) -> EarlyOpinions:
        """Fused opinions of as many templates as each image takes; see `promptprism.inference.early`.

        Raises:
            PromptPrismError: as `logits` does; or the method has no opinions, or the margin is negative.
        """
        check_early(self.classifier, margin)
        weights, used = [], []
        for batch, views in self.views(sources, batch_size, unread):
            early = early_opinions(self.classifier, views, margin)
            check_finite(early.fused.weight[None], [sources[i] for i in batch])
            weights.append(early.fused.weight.cpu())
            used.append(early.templates_used.cpu())
        _refuse_none(sources, unread)
        return EarlyOpinions(Opinion(torch.cat(weights)), torch.cat(used))

    def views(
        self, sources: Sequence[ImageSource], batch_size: int, unread: Unread | None
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Yield places and plain views [1, B, 3, H, W] of the images that can be read; see `logits`."""
        backbone = self.classifier.backbone
        make = make_views(("test",), backbone.image_size, backbone.mean, backbone.std)
        batches = plain_batches(len(sources), batch_size)
        for batch, views in view_batches(sources, batches, make, unread=unread):
            yield batch, views.to(backbone.device)


def _refuse_none(sources: Sequence[ImageSource], unread: Unread | None) -> None:
    if unread and len(unread) == len(sources):
        raise none_read(list(unread.values()))


def none_read(reasons: Sequence[str]) -> PromptPrismError:
    """The error that says why not one of the images can be read."""
    told = "; ".join(reasons[:5])
    return PromptPrismError(f"none of {len(reasons)} images can be read: {told}" if reasons[1:] else told)


def check_finite(logits: Tensor, sources: Sequence[ImageSource]) -> None:
    """Refuse answers that are none.

    Args:
        logits: [M, B, K].
        sources: the B images.

    Raises:
        PromptPrismError: some are not finite: of which image, and where that may come from.
    """
    finite = logits.isfinite().all(-1).all(0)
    if not finite.all():
        wrong = [source for source, right in zip(sources, finite.tolist(), strict=True) if not right]
        what = "an array" if isinstance(wrong[0], np.ndarray) else f"'{wrong[0]}'"
        raise PromptPrismError(
            f"the answers for {len(wrong)} of {len(sources)} images are not finite, first {what}: the "
            "adapter or the backbone's weights hold damaged or too large values, or its precision is too "
            "low; fit anew, fetch the weights again, or take precision float32"
        )


def check_labels(records: Sequence[Record], classes: int) -> None:
    """Raise PromptPrismError unless all labels lie in 0..classes-1."""
    for place, record in enumerate(records):
        if not 0 <= record.label < classes:
            raise PromptPrismError(
                f"label {record.label} of image {place} does not fit a method for {classes} classes: "
                "build it for the label space of the data"
            )
