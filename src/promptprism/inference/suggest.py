"""What to label next, and which labels to look at again, by what a classifier says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from promptprism.data.images import ImageSource
from promptprism.inference.predictor import Predictor, Unread, check_finite, none_read
from promptprism.methods import Classifier
from promptprism.prompts import encode_image


class Looks(NamedTuple):
    """Images as they were looked at.

    Attributes:
        places: of the N that could be read.
        probabilities: [N, K].
        features: of the frozen image tower, normalised, [N, D].
        unread: the places of the others, and why they cannot be read.
    """

    places: list[int]
    probabilities: Tensor
    features: Tensor
    unread: Unread


@torch.no_grad()
def look(classifier: Classifier, sources: Sequence[ImageSource], batch_size: int = 32) -> Looks:
    """Probabilities and features of images, on the CPU; those that cannot be read are left out.

    Raises:
        PromptPrismError: no image can be read, or an answer is not finite.
    """
    unread: Unread = {}
    probabilities, features = [], []
    places: list[int] = []
    for batch, views in Predictor(classifier).views(sources, batch_size, unread):
        logits = classifier.logits(views)
        check_finite(logits, [sources[i] for i in batch])
        probabilities.append(classifier.probabilities(logits).cpu())
        features.append(encode_image(classifier.backbone, views)[0].float().cpu())
        places += batch
    if not places:
        raise none_read([*unread.values()])
    return Looks(places, torch.cat(probabilities), torch.cat(features), unread)


def worth_labelling(probabilities: Tensor, features: Tensor, count: int, seed: int = 1) -> list[int]:
    """Choose images that a classifier is unsure of, and that are unlike each other (BADGE).

    Each image stands for the gradient that the loss would have at the last layer if the classifier's own
    answer were right, (p - onehot(answer)) x feature: it is short where the classifier is sure. Of these
    points the seeding of k-means++ takes ``count``: the longest first, then each with a chance in proportion
    to its squared distance to the nearest one taken. Ash et al., Deep Batch Active Learning by Diverse,
    Uncertain Gradient Lower Bounds, ICLR 2020. Here the origin counts as taken from the beginning: else
    images that the classifier is sure of, all near to it, would be as far from what is taken as any. Nothing
    of size K x D is stored.

    Args:
        probabilities: [N, K].
        features: [N, D].
        count: how many; all of them, if there are no more.
        seed: of the draw.

    Returns:
        Their places, in the order in which they were chosen.
    """
    pull = probabilities.double().clone()
    pull[torch.arange(len(pull)), probabilities.argmax(-1)] -= 1
    features = features.double()
    squares = pull.square().sum(-1) * features.square().sum(-1)
    generator = torch.Generator().manual_seed(seed)
    chosen: list[int] = []
    nearest, free = squares.clone(), torch.ones(len(pull), dtype=torch.bool)
    while len(chosen) < min(count, len(pull)):
        chances = nearest * free
        if not chosen:
            place = int(squares.argmax())
        elif chances.sum() > 0:
            place = int(torch.multinomial(chances, 1, generator=generator))
        else:
            place = int(free.int().argmax())  # all that are left are like one taken
        chosen.append(place)
        free[place] = False
        products = (pull @ pull[place]) * (features @ features[place])
        distances = (squares + squares[place] - 2 * products).clamp(min=0)
        nearest = torch.minimum(nearest, distances)
    return chosen


def label_issues(probabilities: Tensor, labels: Tensor) -> list[int]:
    """Find images whose labels look wrong, the surest first (confident learning).

    A class is claimed for an image if its probability is at least what the images labelled so have on
    average. Where the most probable of the claimed classes is another one than the label, the label is in
    doubt; the order is by how far that class is ahead of it. Northcutt, Jiang and Chuang, Confident Learning:
    Estimating Uncertainty in Dataset Labels, JAIR 2021.

    Args:
        probabilities: [N, K], of images that were not learned from.
        labels: [N].

    Returns:
        Places of these images.
    """
    probabilities = probabilities.double()
    own = probabilities.gather(-1, labels[:, None])[:, 0]
    counts = torch.bincount(labels, minlength=probabilities.shape[-1])
    sums = torch.zeros(len(counts), dtype=torch.float64).index_add(0, labels, own)
    # No image is labelled with a class of count 0: nothing can be claimed for it.
    usual = torch.where(counts > 0, sums / counts.clamp(min=1), torch.inf)
    claimed = torch.where(probabilities >= usual, probabilities, 0.0)
    share, other = claimed.max(-1)
    places = torch.nonzero((share > 0) & (other != labels))[:, 0]
    return [int(place) for place in places[(own - share)[places].argsort(stable=True)]]
