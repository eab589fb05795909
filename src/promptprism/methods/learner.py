"""What CDC asks of what it learns with: M learners of one kind, each a classifier of its own."""

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promptprism.data.batches import labels_of
from promptprism.data.names import LabelSpace
from promptprism.data.records import Records
from promptprism.data.views import view_names
from promptprism.methods.base import Method
from promptprism.methods.classifier import Classifier, Texts
from promptprism.methods.frozen import frozen_features, weights_of
from promptprism.methods.objectives import softmax_loss
from promptprism.prompts.learner import local_generator

Readings = list[tuple[float, Tensor]]

#: Beside classes that were not learned: the share of what is a class's own that its offset keeps, and the
#: strength of the regression that gives the others theirs. Chosen on the development sets.
OWN, RIDGE = 0.7, 5.0


class LearnerMethod(Method):
    """M learners on a frozen CLIP, softmax cross-entropy.

    A kind of learner says `text_features` and `image_features`, `classify`, `contexts`, `shape` and `axes`;
    also `features`, where a step sees something else than a prediction does.
    """

    by_class: ClassVar[frozenset[str]] = frozenset({"offsets"})

    @property
    def templates(self) -> int:
        """M."""
        return int(getattr(self.settings, "templates", 1))

    def build(self, seed: int) -> None:
        """Choose the views; kinds make the learners."""
        # None until there is room for them: a method that has seen no image has none.
        self.offsets: nn.Parameter | None = None
        self.views = view_names(self.settings.views, self.templates)
        self._drawn: dict[str, tuple[int, torch.Generator]] = {}

    def text_features(self, texts: Texts) -> Tensor:
        """Text features [M, K, D] under the templates, without offsets."""
        raise NotImplementedError

    def image_features(self, views: Tensor, shown: Tensor | None = None) -> Tensor:
        """Image features [M, B, D] of views [M or 1, B, 3, H, W]; as many as views where nothing is learned.

        Args:
            views: one for each template, or one for all.
            shown: the patches that each template sees, see `promptprism.prompts.encode_image`.
        """
        raise NotImplementedError

    def features(
        self, views: Tensor, texts: Texts, epoch: int, shown: Tensor | None = None
    ) -> tuple[Tensor, Readings]:
        """What a step sees: text features [M, K, D], and readings [M, B, D] of the images with their weights.

        Of two readings each has a loss; logits are added up for the prediction, by the same weights.
        """
        image = self.image_features(views, shown)
        return self.text_features(texts), [(1.0, image)]

    def contexts(self) -> Tensor:
        """Vectors that the templates learn, [M, G, n, D]: in each of G places n that span a subspace."""
        raise NotImplementedError

    def forward(
        self, views: Tensor, labels: Tensor, texts: Texts, epoch: int, weights: Tensor | None = None
    ) -> Tensor:
        """Cross-entropy, averaged over templates and images."""
        text, readings = self.features(views, texts, epoch)
        logits = self.logits(readings, text, texts.space)
        return weighted(logits, lambda one: softmax_loss(one, labels, weights))

    def logits(self, readings: Readings, text: Tensor, space: LabelSpace) -> Readings:
        """Logits [M, B, K] of each reading, with its weight."""
        text = self.with_offsets(text, space)
        return [(weight, self.backbone.logits(image, text)) for weight, image in readings]

    def draws(self, purpose: str, epoch: int, device: str | torch.device = "cpu") -> torch.Generator:
        """The numbers of an epoch, drawn from step to step; each epoch begins anew, as a resumed run does."""
        if purpose not in self._drawn or self._drawn[purpose][0] != epoch:
            self._drawn[purpose] = epoch, local_generator(self.seed, purpose.format(epoch), device)
        return self._drawn[purpose][1]

    @property
    def has_offsets(self) -> bool:
        """Whether each class learned has an offset of its own."""
        wanted = getattr(self.settings, "class_offsets", False)
        return self.backbone.few_names if wanted is None else bool(wanted)

    def allot(self, classes: int, images: int) -> None:
        """Make room for the offsets."""
        if self.has_offsets:
            shape = self.templates, classes, self.backbone.embed_dim
            self.offsets = nn.Parameter(torch.zeros(shape, device=self.backbone.device))

    def prepare(self, texts: Texts, records: Records) -> None:
        """Start the offsets at the mean of each class's plain images."""
        if self.offsets is None:
            return
        with torch.inference_mode(False), torch.no_grad():
            images = F.normalize(frozen_features(self.backbone, records), dim=-1)
            if (weights := weights_of(records)) is not None:
                images = images * weights.to(images).unsqueeze(-1)
            sums = images.new_zeros(len(texts.space), images.shape[1])
            sums.index_add_(0, labels_of(records, images.device), images)
            self.offsets.copy_(F.normalize(sums, dim=-1) - self.text_features(texts))

    def with_offsets(self, text: Tensor, space: LabelSpace, learned: LabelSpace | None = None) -> Tensor:
        """Text features [M, K, D] of a space, with the offsets of the classes learned (None: the same).

        Where none was learned there are no offsets. Where some were, the rest goes where images lie by what
        `predicted` makes of the offsets, and the learned ones give up a part of what is their own.
        """
        offsets: Tensor | None = self.offsets
        if offsets is None:
            return text
        if learned is not None:
            rows = torch.tensor(learned.places(space), device=text.device)
            known = rows >= 0
            if not known.any():
                offsets = torch.zeros_like(text)
            elif known.all():
                offsets = offsets[:, rows]
            else:
                own = torch.lerp(offsets.mean(dim=1, keepdim=True), offsets[:, rows], OWN)
                rest = predicted(self._learned_features(text, space, learned), offsets, text)
                offsets = torch.where(known.unsqueeze(-1), own, rest)
        return F.normalize(text + offsets, dim=-1)

    def _learned_features(self, text: Tensor, space: LabelSpace, learned: LabelSpace) -> Tensor:
        """Text features [M, K, D] of the classes learned, of which those of a space are there already."""
        rows = torch.tensor(space.places(learned), device=text.device)
        near = text[:, rows]
        if missing := (rows < 0).nonzero().flatten().tolist():
            names = tuple(learned.names[place] for place in missing)
            # In the phrase of the space: another one would be another place.
            near[:, missing] = self.text_features(self.texts(replace(space, names=names)))
        return near

    def separable(self, space: LabelSpace, learned: LabelSpace) -> bool:
        """No with offsets, where some classes were learned and some were not."""
        places = learned.places(space)
        return not self.has_offsets or min(places) >= 0 or max(places) < 0

    def classify(self, texts: Texts, learned: LabelSpace | None) -> Classifier:
        """M text classifiers on image features under the M templates, softmax head."""
        raise NotImplementedError


def weighted(logits: Readings, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """A loss of the logits [M, B, K] of each reading, added up by their weights."""
    return torch.stack([weight * loss(one) for weight, one in logits]).sum()


def predicted(near: Tensor, offsets: Tensor, text: Tensor) -> Tensor:
    """Offsets [M, k, D] of classes that have none, by kernel ridge regression on those that have.

    The kernel is the product of centred text features, of mean 1 on a class itself; far from all classes that
    have an offset, theirs is the mean of all.

    Args:
        near: text features [M, K, D] of the classes that have offsets.
        offsets: [M, K, D].
        text: text features [M, k, D] of the others.
    """
    near, offsets, text = near.float(), offsets.float(), text.float()
    centre, mean = near.mean(1, keepdim=True), offsets.mean(1, keepdim=True)
    near, text = near - centre, text - centre
    kernel = near @ near.mT
    unit = kernel.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    held = kernel + RIDGE * unit * torch.eye(near.shape[1], device=near.device)
    weights: Tensor = torch.linalg.solve(held, offsets - mean)
    return mean + text @ near.mT @ weights
