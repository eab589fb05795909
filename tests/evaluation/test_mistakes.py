"""Confusion, classes and mistakes of answers that are counted by hand."""

import torch

from promptprism.evaluation.mistakes import class_rows, confused, confusion, worst_mistakes

NAMES = ("ant", "bee", "cat")
LABELS = torch.tensor([0, 0, 0, 1, 1])
ANSWERS = torch.tensor([0, 1, 1, 1, 0])


def test_counts():
    matrix = confusion(ANSWERS, LABELS, 3)
    assert matrix.tolist() == [[1, 2, 0], [1, 1, 0], [0, 0, 0]]
    assert class_rows(matrix, NAMES) == [
        {"class": "ant", "images": 3, "precision": 1 / 2, "recall": 1 / 3},
        {"class": "bee", "images": 2, "precision": 1 / 3, "recall": 1 / 2},
        {"class": "cat", "images": 0, "precision": None, "recall": None},
    ]
    assert confused(matrix, NAMES) == [
        {"truth": "ant", "answer": "bee", "images": 2},
        {"truth": "bee", "answer": "ant", "images": 1},
    ]


def test_the_surest_mistakes_come_first():
    probabilities = torch.tensor([[0.6, 0.4, 0.0], [0.1, 0.9, 0.0], [0.25, 0.75, 0.0], [0.5, 0.0, 0.5]])
    found = worst_mistakes(probabilities, torch.tensor([0, 0, 0, 1]), NAMES)
    assert [one["place"] for one in found] == [1, 2, 3]
    assert found[1] == {"place": 2, "truth": "ant", "answer": "bee", "probability": 0.75, "of_truth": 0.25}
