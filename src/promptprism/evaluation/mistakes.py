"""What was taken for what: the confusion matrix, scores of each class, and the surest of the mistakes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Row = dict[str, Any]


def confusion(answers: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How many images of each class (rows) were taken for each class (columns), [K, K]."""
    return torch.bincount(labels * classes + answers, minlength=classes**2).reshape(classes, classes)


def class_rows(matrix: Tensor, names: Sequence[str]) -> list[Row]:
    """Images, precision and recall of each class; None where there is no image, or no answer, of it."""
    right, images, answers = (of.tolist() for of in (matrix.diag(), matrix.sum(1), matrix.sum(0)))
    return [
        {
            "class": name,
            "images": count,
            "precision": hits / given if given else None,
            "recall": hits / count if count else None,
        }
        for name, hits, count, given in zip(names, right, images, answers, strict=True)
    ]


def confused(matrix: Tensor, names: Sequence[str]) -> list[Row]:
    """Pairs of classes of which one was taken for the other, the most frequent first."""
    pairs = [(int(matrix[i, j]), i, j) for i, j in matrix.nonzero().tolist() if i != j]
    pairs.sort(key=lambda pair: (-pair[0], *pair[1:]))
    return [{"truth": names[i], "answer": names[j], "images": count} for count, i, j in pairs]


def worst_mistakes(probabilities: Tensor, labels: Tensor, names: Sequence[str]) -> list[Row]:
    """Wrong answers, the surest first: place of the image, truth, answer, and what both were given.

    Args:
        probabilities: [B, K].
        labels: [B].
        names: K class names.
    """
    shares, answers = probabilities.max(-1)
    wrong = torch.nonzero(answers != labels)[:, 0]
    truths, given = labels.tolist(), answers.tolist()
    order = wrong[shares[wrong].argsort(descending=True, stable=True)]
    return [
        {
            "place": place,
            "truth": names[truths[place]],
            "answer": names[given[place]],
            "probability": shares[place].item(),
            "of_truth": probabilities[place, truths[place]].item(),
        }
        for place in order.tolist()
    ]
