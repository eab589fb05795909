"""Which precision the matrix products run in: what is faster on this processor, and safe.

float16 is never chosen: CLIP's activations overflow it.
"""

import time
from functools import cache
from typing import Literal

import torch
from torch.nn import functional as F

from promptprism.errors import PromptPrismError, warn

Precision = Literal["auto", "float32", "bfloat16"]
Chosen = Literal["float32", "bfloat16"]
_CHOICES: tuple[Chosen, ...] = ("float32", "bfloat16")

#: bfloat16 must be so much faster in a product to be chosen: the rest of a step gains nothing from it.
_CLEAR = 1.5
#: An explicit choice that is so much slower than the other is warned about.
_SLOW = 3.0
_ROWS, _FEW, _REPEATS, _SECONDS = 256, 16, 5, 0.02
#: Windows counts a thread's time in steps of a sixtieth of a second.
_fine = time.get_clock_info("thread_time").resolution < 1e-4
_clock = time.thread_time if _fine else time.perf_counter


def choose_precision(precision: Precision, device: torch.device, width: int) -> Chosen:
    """What the products of a backbone run in.

    Args:
        precision: what is asked for; `"auto"` is bfloat16 on a CUDA device that has it, and on a CPU where a
            product of the backbone's width is at least 1.5 times faster in it; else float32.
        device: that the backbone is on.
        width: of its states.

    Raises:
        PromptPrismError: another name.
    """
    if precision not in ("auto", *_CHOICES):
        raise PromptPrismError(f"Unknown precision {precision!r}: use 'auto', 'float32' or 'bfloat16'.")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type != "cpu":
        return "float32"
    seconds = product_seconds(width)
    return "bfloat16" if seconds["float32"] > _CLEAR * seconds["bfloat16"] else "float32"


def warn_if_slow(precision: Precision, device: torch.device, width: int) -> None:
    """Warn about an explicit choice that is over 3 times slower than the other on this processor."""
    if precision == "auto" or device.type != "cpu":
        return
    seconds = product_seconds(width)
    other: Chosen = "bfloat16" if precision == "float32" else "float32"
    if seconds[precision] > _SLOW * seconds[other]:
        warn(
            f"products in {precision} take {seconds[precision] / seconds[other]:.0f} times as long as in "
            f"{other} on this processor: take --precision {other}, unless results must be equal to others'"
        )


@cache
def product_seconds(width: int) -> dict[Chosen, float]:
    """Seconds of a product as a transformer's MLP has it, float32 in and out, in both precisions.

    The best of a few, in time of one thread: what else the machine does is not in it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        states, weight = torch.randn(_ROWS, width), torch.randn(4 * width, width)
        float32 = _best(states, weight)
        few, low = states[: _ROWS // _FEW], weight.bfloat16()
        bfloat16 = _FEW * _best(few, low)
        # Where bfloat16 is emulated the whole product would take seconds, and nothing is left to find out.
        return {
            "float32": float32,
            "bfloat16": bfloat16 if bfloat16 > 2 * _SLOW * float32 else _best(states, low),
        }
    finally:
        torch.set_num_threads(threads)


def _best(states: torch.Tensor, weight: torch.Tensor) -> float:
    best, start, done = float("inf"), _clock(), 0
    while done < 2 or (done < _REPEATS and _clock() - start < _SECONDS):
        before = _clock()
        F.linear(states.to(weight.dtype), weight).float()
        best = min(best, _clock() - before)
        done += 1
    return best
