"""The front-door estimate of P(y | do(x)), as far as it can be computed, and how far fusion is from it.

CDC starts from P(y | do(x)) = sum_s P(s | x) sum_x' P(y | s, x') P(x'), with task-relevant semantics s. To
compute it one must say what s and P(s | x) are, and how to show a classifier the semantics s of one image
with the rest of another. Here:

- s = (m, object): one template's reading of the object's own pixels. P(s | x) weighs templates by their
  trust, 1 - u_m(x), made to add up to 1.
- P(y | s, x') is template m's probability for x's object, pixel by pixel, standing in the scene x': colour,
  pattern, second object and noise are those of x'. MiniWorld can draw that image. Style, scale, rotation and
  place stay, for they are how the object looks in x.
- P(x') is the training images', drawn without looking at x: that is the adjustment.

It needs the generator, so it is an oracle to measure against, no method.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from promptprism.causality.interventions import Answers
from promptprism.data.miniworld import Scene
from promptprism.evaluation.metrics import calibration_metrics
from promptprism.inference.predictor import Predictor
from promptprism.provenance import Facts

#: What a scene has of its context; the rest is its object's.
_CONTEXT = ("colour", "pattern", "period", "second", "second_scale", "corner", "noise", "seed")


class Estimate(Facts):
    """One way to a class probability, scored.

    Attributes:
        accuracy: share of scenes whose most probable class is right.
        ece: expected calibration error.
        nll: mean negative log-likelihood, nats.
        distance: mean total variation from the front-door estimate, 0 to 1.
        agreement: share of scenes with the front-door estimate's class.
    """

    accuracy: float
    ece: float
    nll: float
    distance: float
    agreement: float


def in_context(scene: Scene, contexts: Sequence[Scene], key: str) -> Scene:
    """The scene's object as it is, in a context drawn from other scenes; the same for the same key.

    A context whose second object is the scene's own object is passed over.
    """
    rng = random.Random(f"context {key}")
    context = contexts[int(rng.random() * len(contexts))]
    while context.second == scene.concept:
        context = contexts[int(rng.random() * len(contexts))]
    return replace(scene, **{name: getattr(context, name) for name in _CONTEXT})


def front_door(
    predictor: Predictor,
    plain: Answers,
    shown: Sequence[Scene],
    labels: Tensor,
    contexts: Sequence[Scene],
    draws: int,
) -> dict[str, Estimate]:
    """Score the ways from M templates to one class probability against the front-door estimate.

    - ``fused``: what the method says of the image, by its own fusion.
    - ``mixture``: sum_m P(m | x) p_m(y | x): templates mixed by trust, nothing adjusted.
    - ``fused, adjusted``: the method's own fusion, averaged over contexts.
    - ``front-door``: the estimate: mixed by trust, and averaged over contexts.
    - ``index only``: sum_m P(m | x) mean_x' p_m(y | x'), what is left if s is the number of a template and
      no more: nearly the same for all images, so that it classifies none.

    Args:
        predictor: of the method.
        plain: answers to the scenes as they are.
        shown: B scenes.
        labels: [B].
        contexts: training scenes.
        draws: contexts for each scene.
    """
    trust = plain.trust.clamp(min=1e-12)
    weights = (trust / trust.sum(0)).unsqueeze(-1)
    each, final = torch.zeros_like(plain.each), torch.zeros_like(plain.final)
    for draw in range(draws):
        there = [in_context(scene, contexts, f"{draw} {place}") for place, scene in enumerate(shown)]
        answers = Answers(predictor, there)
        each += answers.each / draws
        final += answers.final / draws
    target = (weights * each).sum(0)
    ways = {
        "fused": plain.final,
        "mixture": (weights * plain.each).sum(0),
        "fused, adjusted": final,
        "front-door": target,
        "index only": (weights * plain.each.mean(1, keepdim=True)).sum(0),
    }
    return {name: _score(probabilities, target, labels) for name, probabilities in ways.items()}


def _score(probabilities: Tensor, target: Tensor, labels: Tensor) -> Estimate:
    calibration = calibration_metrics(probabilities, labels)
    said = probabilities.argmax(-1)
    return Estimate(
        accuracy=(said == labels).double().mean().item(),
        ece=calibration["ece"],
        nll=calibration["nll"],
        distance=((probabilities - target).abs().sum(-1) / 2).mean().item(),
        agreement=(said == target.argmax(-1)).double().mean().item(),
    )
