"""Multinomial logistic regression, solved to its end."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def solve(features: Tensor, labels: Tensor, classes: int, strength: float) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression: least C sum of cross-entropies + half the squared norm of the weights.

    The bias is free, as in scikit-learn; solved by L-BFGS in double precision where the device has it.

    Args:
        features: [N, D].
        labels: [N], in 0..classes-1.
        classes: K.
        strength: C.

    Returns:
        Weight [K, D] and bias [K], float32.
    """
    kind = torch.float32 if features.device.type == "mps" else torch.float64
    features = features.to(kind)
    weight = torch.zeros(classes, features.shape[1], dtype=kind, device=features.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=kind, device=features.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=1000,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(features, weight, bias), labels)
        loss = loss + weight.square().sum() / (2 * strength * len(features))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.inference_mode(False), torch.enable_grad():
        optimizer.step(objective)  # type: ignore[no-untyped-call]
    return weight.detach().float(), bias.detach().float()
