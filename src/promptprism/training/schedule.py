"""Learning rates of the field: one epoch of warm-up at a constant rate, then a cosine."""

from __future__ import annotations

import math


def learning_rate(epoch: int, epochs: int, lr: float, warmup_lr: float) -> float:
    """Rate of a whole epoch (from 0), as CoOp, CoCoOp and MaPLe train.

    Epoch 0 runs at ``warmup_lr``; the cosine then starts at ``lr``, with a period as if it had all epochs. A
    run of one epoch has no warm-up: it would learn nothing.
    """
    if epochs == 1:
        return lr
    return warmup_lr if epoch == 0 else lr * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2


def rate_scale(logit_scale: float) -> float:
    """Factor on every rate, so that one step moves the logits as far as on CLIP, whose logit scale is 100.

    Logits are the scale times a cosine: the gradient has it as a factor once, and so has what a step changes.
    """
    return (100 / logit_scale) ** 2
