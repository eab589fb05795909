"""Interventions on MiniWorld's scenes: what moves a prediction that should not, and what templates look at.

All scenes are the data set's test scenes, in which no factor goes with the class, and each intervention sets
one task-irrelevant factor of a scene to another value and leaves all else as it is, to the last pixel.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from promptprism.data.miniworld import Scene, scenes
from promptprism.data.miniworld.scenes import COLOURS, PATTERNS
from promptprism.data.miniworld.sprites import Concept
from promptprism.data.miniworld.worlds import WORLD_ARTISTS, SceneSource
from promptprism.evaluation.metrics import predictions
from promptprism.inference.predictor import Predictor
from promptprism.methods import Classifier
from promptprism.provenance import Facts

_T = TypeVar("_T")

FACTORS = ("colour", "pattern", "style", "second object")
#: Other pixel noise of the same strength: what moves with it too is no answer to an intervention.
CONTROL = "pixel noise"
_BATCH = 64
#: Penalty of the linear probes, for each image they are fitted on; features have variance 1.
_RIDGE = 0.1


class Moved(Facts):
    """How an intervention moves a prediction, mean over scenes.

    Attributes:
        flips: share of scenes whose predicted class changes.
        total_variation: half the summed change of all class probabilities, 0 to 1.
    """

    flips: float
    total_variation: float


class Answers:
    """Probabilities of B scenes from everyone who has some: the final prediction, and each template.

    Attributes:
        who: "fused", and "S1" to "SM" if there are several templates.
        probabilities: [W, B, K], in the order of ``who``, float64.
        each: [M, B, K], of the templates alone.
        trust: [M, B], 1 - uncertainty of each template's opinion; ones for methods without opinions.
    """

    def __init__(self, predictor: Predictor, shown: Sequence[Scene]) -> None:
        batches = predictor.logits([SceneSource(scene) for scene in shown], _BATCH)
        each, final = predictions(
            predictor.classifier, torch.cat([logits.cpu() for logits in batches], dim=1)
        )
        self.each = torch.stack([one.probabilities for one in each])
        self.final = final.probabilities
        several = len(each) > 1
        self.who = ("fused", *(f"S{m}" for m in range(1, len(each) + 1) if several))
        self.probabilities = torch.cat([self.final[None], self.each]) if several else self.final[None]
        sure = [1 - one.uncertainty for one in each if one.uncertainty is not None]
        self.trust = torch.stack(sure) if sure else torch.ones(self.each.shape[:2], dtype=self.each.dtype)

    def by_name(self, values: Tensor) -> dict[str, float]:
        """Name one value [W] for everyone."""
        return dict(zip(self.who, values.tolist(), strict=True))


def do(scene: Scene, factor: str, others: Sequence[Concept], key: str) -> Scene:
    """The scene with one factor set to another value, drawn evenly among the other values.

    do(second object) takes one away where there is one, and puts one where there is none.

    Args:
        scene: as it is.
        factor: of FACTORS, or CONTROL.
        others: what a second object is drawn from.
        key: of the draw: the same value is drawn for the same key everywhere.
    """
    rng = random.Random(f"do {factor} {key}")

    def other(options: Sequence[_T], than: object) -> _T:
        left = [option for option in options if option != than]
        return left[int(rng.random() * len(left))]

    match factor:
        case "colour":
            return replace(scene, colour=other(tuple(COLOURS), scene.colour))
        case "pattern":
            return replace(scene, pattern=other(PATTERNS, scene.pattern))
        case "style":
            return replace(scene, artist=other(WORLD_ARTISTS, scene.artist))
        case "second object":
            return replace(scene, second=None if scene.second else other(others, scene.concept))
        case "pixel noise":
            return replace(scene, noise_seed=int(rng.random() * 2**31))
    raise ValueError(f"unknown factor {factor!r}: {', '.join((*FACTORS, CONTROL))}")


def moved(before: Answers, after: Answers) -> dict[str, Moved]:
    """How far everyone's prediction moved, by name."""
    flips = before.probabilities.argmax(-1) != after.probabilities.argmax(-1)
    variation = (before.probabilities - after.probabilities).abs().sum(-1) / 2
    pairs = zip(flips.double().mean(-1).tolist(), variation.mean(-1).tolist(), strict=True)
    return {
        name: Moved(flips=share, total_variation=distance)
        for name, (share, distance) in zip(before.who, pairs, strict=True)
    }


def usual_colours(data: str) -> list[str]:
    """The background colour that goes with each class in training; at rho = 1 with all of its scenes."""
    return list({label: scene.colour for scene, label in scenes(data, "train", 1.0)}.values())


def pulled(before: Tensor, after: Tensor, shown: Sequence[Scene], usual: Sequence[str]) -> Tensor:
    """How much probability do(colour) moves to the classes whose usual colour the new one is, [W].

    This is the confounding itself: 0 for one who has not learned which colour goes with which class.

    Args:
        before: probabilities [W, B, K] of the scenes as they were.
        after: the same, of the scenes shown.
        shown: with the new colours.
        usual: colour of each class, see `usual_colours`.
    """
    places = {colour: place for place, colour in enumerate(COLOURS)}
    of_classes = torch.tensor([places[colour] for colour in usual])
    set_to = torch.tensor([places[scene.colour] for scene in shown])
    gained = (after - before) * (set_to[:, None] == of_classes)
    return gained.sum(-1).mean(-1)


def factors_of(shown: Sequence[Scene], labels: Sequence[int]) -> dict[str, Tensor]:
    """What a probe is asked for: the factors' values of each scene as numbers, the object among them."""
    return {
        "object": torch.tensor(labels),
        "colour": torch.tensor([list(COLOURS).index(scene.colour) for scene in shown]),
        "pattern": torch.tensor([PATTERNS.index(scene.pattern) for scene in shown]),
        "style": torch.tensor([WORLD_ARTISTS.index(scene.artist) for scene in shown]),
        "second object": torch.tensor([scene.second is not None for scene in shown]).long(),
    }


def image_features(classifier: Classifier, shown: Sequence[Scene]) -> Tensor:
    """Image features [M, B, D]: of templates with prompts in the vision tower, else of the tower itself."""
    seen = Predictor(classifier).views([SceneSource(scene) for scene in shown], _BATCH, None)
    with torch.no_grad():
        return torch.cat([classifier.image_features(views).cpu() for _, views in seen], dim=1)


def probe(features: Tensor, values: Tensor) -> tuple[float, float]:
    """How well a linear map of the features tells a factor's value.

    Ridge regression on one-hot values in closed form, fitted on every second image and scored on the rest.

    Args:
        features: [B, D].
        values: [B], numbers from 0.

    Returns:
        Accuracy, and chance: that of always saying the commonest value.
    """
    features, targets = features.double(), F.one_hot(values).double()
    fit = torch.arange(len(values)) % 2 == 0
    mean, std = features[fit].mean(0), features[fit].std(0).clamp(min=1e-9)
    x, offset = (features - mean) / std, targets[fit].mean(0)
    penalty = _RIDGE * int(fit.sum()) * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(x[fit].T @ x[fit] + penalty, x[fit].T @ (targets[fit] - offset))
    said, right = (x[~fit] @ weights + offset).argmax(-1), values[~fit]
    chance = right.bincount().max() / len(right)
    return (said == right).double().mean().item(), chance.item()


def variance_share(features: Tensor, values: Tensor) -> float:
    """The share of the variance of features [B, D] that goes with a factor's value, numbers [B] from 0.

    Omega squared (Hays, 1963), which is 0 on average, not more, for a factor that does nothing. A probe finds
    what is there at all; this is how much of it there is.
    """
    features = features.double() - features.double().mean(0)
    counts = values.bincount().double()
    sums = torch.zeros(len(counts), features.shape[1], dtype=features.dtype).index_add_(0, values, features)
    kept = counts > 0
    between = (sums[kept].square().sum(-1) / counts[kept]).sum()
    total, groups = features.square().sum(), int(kept.sum())
    within = (total - between) / (len(values) - groups)
    return ((between - (groups - 1) * within) / (total + within)).item()
