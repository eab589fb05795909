"""Optimizers and learning rates of the field; which of them is the method's choice."""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch.nn import Parameter

from promptprism.methods import MethodSettings


def make_optimizer(settings: MethodSettings, parameters: Iterable[Parameter]) -> torch.optim.Optimizer:
    """The optimizer that a method's settings ask for."""
    # PyTorch's optimizers take no empty list; a method may learn by other means.
    listed = list(parameters) or [Parameter(torch.zeros(0))]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(
            listed, lr=settings.lr, weight_decay=settings.weight_decay, eps=settings.adam_epsilon
        )
    return torch.optim.SGD(
        listed, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )


def step_rate(settings: MethodSettings, epoch: int, step: int, steps: int) -> float:
    """Rate of a step (from 0) of so many in each epoch (from 0), by the method's schedule."""
    if settings.schedule == "epochs":
        return learning_rate(epoch, settings.epochs, settings.lr, settings.warmup_lr)
    share = (epoch * steps + step) / (settings.epochs * steps)
    lowest = settings.lowest_lr
    return lowest + (settings.lr - lowest) * (1 + math.cos(math.pi * share)) / 2


def learning_rate(epoch: int, epochs: int, lr: float, warmup_lr: float) -> float:
    """Rate of a whole epoch (from 0), as CoOp, CoCoOp and MaPLe train.

    Epoch 0 runs at ``warmup_lr``; the cosine then starts at ``lr``, with a period as if it had all epochs. A
    run of one epoch has no warm-up: it would learn nothing.
    """
    if epochs == 1:
        return lr
    return warmup_lr if epoch == 0 else lr * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2


def rate_scale(logit_scale: float, optimizer: Literal["sgd", "adamw"] = "sgd") -> float:
    """Factor on every rate, so that one step moves the logits as far as on CLIP, whose logit scale is 100.

    Logits are the scale times a cosine: the gradient has it as a factor once, and so has what a step changes.
    AdamW divides the gradient by its size, so that the second remains.
    """
    return (100 / logit_scale) ** (1 if optimizer == "adamw" else 2)
