"""What to label next, and which labels to look at again, by what a classifier says."""

from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from promptprism.data.images import ImageSource
from promptprism.inference.predictor import Predictor, Unread, check_finite, none_read
from promptprism.methods import Classifier
from promptprism.prompts import encode_image

#: Images that are chosen among at most.
POOL = 10_000
_BATCH = 32
# Images whose sources are held at once.
_CHUNK = 4 * _BATCH


class Pool(NamedTuple):
    """Images to choose from.

    Attributes:
        sources: N of them, in the order in which they were found.
        probabilities: [N, K].
        features: of the frozen image tower, normalised, [N, D].
        images: how many were looked at, those that cannot be read among them.
        unread: why some cannot be read.
    """

    sources: list[ImageSource]
    probabilities: Tensor
    features: Tensor
    images: int
    unread: list[str]


@torch.no_grad()
def pool_of(classifier: Classifier, sources: Iterable[ImageSource], most: int = POOL) -> Pool:
    """Look at images as they come and keep those with the longest gradients, see `worth_labelling`.

    What is held does not grow with their number. With more than ``most`` the choice is nearly the same: an
    image's chance to be chosen is bounded by its gradient's length squared.

    Args:
        classifier: of K classes.
        sources: the images; drawn from as they are looked at.
        most: how many are kept.

    Raises:
        PromptPrismError: no image can be read, or an answer is not finite.
    """
    rest, images, reasons = iter(sources), 0, list[str]()
    kept: list[ImageSource] = []
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    while chunk := list(islice(rest, _CHUNK)):
        images += len(chunk)
        unread: Unread = {}
        for batch, views in Predictor(classifier).views(chunk, _BATCH, unread):
            logits = classifier.logits(views)
            check_finite(logits, [chunk[i] for i in batch])
            parts[0].append(classifier.probabilities(logits).cpu())
            parts[1].append(encode_image(classifier.backbone, views)[0].float().cpu())
            kept += [chunk[i] for i in batch]
        reasons += unread.values()
        if len(kept) > most:
            probabilities, features = map(torch.cat, parts)
            best = _squares(_pull(probabilities), features.double()).topk(most).indices.sort().values
            kept = [kept[i] for i in best.tolist()]
            parts = ([probabilities[best]], [features[best]])
    if not kept and reasons:
        raise none_read(reasons)
    probabilities, features = (torch.cat(part) if part else torch.empty(0) for part in parts)
    return Pool(kept, probabilities, features, images, reasons)


def _pull(probabilities: Tensor) -> Tensor:
    pull = probabilities.double().clone()
    pull[torch.arange(len(pull)), probabilities.argmax(-1)] -= 1
    return pull


def _squares(pull: Tensor, features: Tensor) -> Tensor:
    return pull.square().sum(-1) * features.square().sum(-1)


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
    pull, features = _pull(probabilities), features.double()
    squares = _squares(pull, features)
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
