"""Is bfloat16 faster than float32 on this processor? Measured, as instructions alone do not tell.

Processors without bfloat16 instructions compute in it all the same, several times slower: a step of
training took 14.6 s in place of 2.9 s.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["slowdown_of_bfloat16", "warn_if_bfloat16_is_slow"]

logger = logging.getLogger(__name__)

_REPEATS = 4  # the fastest counts: other processes only make it slower
_SLOW = 1.2  # below, noise
_ENOUGH = 0.1  # seconds of one convolution, after which no second one is needed


def slowdown_of_bfloat16() -> float:
    """Time of a 3 x 3 convolution in bfloat16 over that in float32, on the CPU.

    It takes 0.02 to 0.4 s.

    A convolution of 64 channels on 32 x 32 pixels stands for the model: two thirds of a training
    step are convolutions, and its matrix products behave alike.
    """
    # Of its own generator: the numbers that training draws stay the same.
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 64, 32, 32, generator=generator)
    kernel = torch.randn(64, 64, 3, 3, generator=generator)
    with torch.no_grad():
        seconds = [_seconds(image.to(t), kernel.to(t)) for t in (torch.float32, torch.bfloat16)]
    return seconds[1] / seconds[0]


def warn_if_bfloat16_is_slow(
    keys: list[str], *, slowdown: Callable[[], float] = slowdown_of_bfloat16
) -> None:
    """Log one warning if bfloat16 is slower than float32 on this CPU.

    Args:
        keys: that ask for bfloat16 on the CPU; none measures nothing.
        slowdown: how it is measured.
    """
    factor = slowdown() if keys else 0.0
    if factor > _SLOW:
        logger.warning(
            "%s asks for bfloat16, but this processor has no fast instructions for it: a "
            "convolution takes %.1f times as long as in float32. %s is faster here",
            " and ".join(keys),
            factor,
            " and ".join(_OFF[key] for key in keys),
        )


_OFF = {"SOLVER.AMP": "SOLVER.AMP.ENABLED False", "TEST.AMP_DTYPE": "TEST.AMP_DTYPE ''"}


def _seconds(image: Tensor, kernel: Tensor) -> float:
    fastest = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        functional.conv2d(image, kernel, padding=1)
        fastest = min(fastest, time.perf_counter() - start)
        if fastest > _ENOUGH:
            break
    return fastest
