"""From logits to evidence. CDC does not say which map it uses, and the map decides what uncertainty means."""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from promptprism.errors import PromptPrismError

EvidenceKind = Literal["exp_centered", "exp", "softplus", "relu", "exp_tanh"]

# exp(65) summed over 21,000 classes and multiplied by as many still fits float32 (3e38).
MAX_EXPONENT = 65.0
TANH_BOUND = 10.0

#: Neighbours among the classes learned, and the distance below which a class counts as one of them.
NEIGHBOURS, SAME = 5, 0.05


def default_temperature(kind: EvidenceKind) -> float:
    """The temperature that ``kind`` takes when none is given: 10 for ``exp_tanh``, 1 for all others."""
    return 10.0 if kind == "exp_tanh" else 1.0


def to_evidence(
    logits: Tensor,
    kind: EvidenceKind = "exp_centered",
    temperature: float | None = None,
    mean: Tensor | None = None,
) -> Tensor:
    """Turn logits into evidence for each class.

    With z = logits / temperature the maps are

    - ``exp_centered``: exp(z - mean of z over classes), so that only differences between classes count;
    - ``exp``: exp(z), on CLIP's logits near certainty for every image;
    - ``softplus``: log(1 + exp(z)), and ``relu``: max(z, 0), on CLIP's logits near-uniform probabilities;
    - ``exp_tanh``: exp(10 tanh(z / 10)), never above e^10; at temperature 10 and CLIP's logit scale of 100
      this is exp(tanh(cosine) / 0.1).

    Exponents are cut at 65, so that float32 never overflows.

    Args:
        logits: [..., K]; half precision is raised to float32.
        kind: the map.
        temperature: positive; ``None`` takes the map's own.
        mean: of the logits of all classes, [..., 1], where these K are only some of them.

    Returns:
        Evidence >= 0, [..., K].

    Raises:
        PromptPrismError: the kind is unknown or the temperature is not positive.
    """
    if kind not in get_args(EvidenceKind):
        raise PromptPrismError(
            f"unknown evidence {kind!r}: choose one of {', '.join(get_args(EvidenceKind))}"
        )
    temperature = default_temperature(kind) if temperature is None else temperature
    if not temperature > 0:
        raise PromptPrismError(f"the evidence temperature is {temperature}: it must be positive")
    z = (logits if logits.dtype == torch.float64 else logits.float()) / temperature
    if kind == "softplus":
        return F.softplus(z)
    if kind == "relu":
        return F.relu(z)
    if kind == "exp_centered":
        z = z - (z.mean(-1, keepdim=True) if mean is None else mean / temperature)
    elif kind == "exp_tanh":
        z = TANH_BOUND * torch.tanh(z / TANH_BOUND)
    return z.clamp(max=MAX_EXPONENT).exp()


def distance_factors(
    features: Tensor, learned: Tensor, zero_shot: Tensor, zero_shot_learned: Tensor
) -> Tensor:
    """How much to scale the logits of classes that were not learned, for each template, float64 [M, C].

    The factor of distance-aware calibration (Wang et al., Open-Vocabulary Calibration for Fine-tuned CLIP,
    ICML 2024): g = exp(-d) / exp(-d_zero-shot), d the mean Euclidean distance of the class's text feature to
    the 5 nearest ones of classes learned, as the template makes them and as zero-shot CLIP does. g = 1 for a
    class nearer than 0.05 to one learned, as the template sees them.

    Args:
        features: text features of the classes, [M, C, D].
        learned: those of the classes learned, [M, K, D].
        zero_shot: of the classes by the hand-made phrase, [1, C, D].
        zero_shot_learned: of the classes learned by the hand-made phrase, [1, K, D].
    """
    near, near_zero_shot = _nearest(features, learned), _nearest(zero_shot, zero_shot_learned)
    factors = (near_zero_shot.mean(-1) - near.mean(-1)).exp()
    return factors.where(near[..., 0] >= SAME, torch.ones_like(factors))


def _nearest(features: Tensor, learned: Tensor) -> Tensor:
    """Distances [M, C, min(5, K)] of features [M, C, D] to the nearest of [M, K, D], nearest first."""
    # The default may use matrix products, which see distances of about 1e-3 between equal vectors.
    distances = torch.cdist(features.double(), learned.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return distances.topk(min(NEIGHBOURS, learned.shape[1]), largest=False).values
