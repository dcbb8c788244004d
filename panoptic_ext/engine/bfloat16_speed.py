"""Measure whether bfloat16 is faster than float32 on this processor.

Processors without bfloat16 instructions emulate it, several times slower: a step of training took
14.6 s instead of 2.9 s.
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

_REPEATS = 4
_SLOWDOWN_TO_WARN = 1.2  # smaller ones are within the noise of the measurement
_LONG_ENOUGH = 0.1  # seconds: a convolution that took so long is not repeated


def slowdown_of_bfloat16() -> float:
    """Time of a 3 x 3 convolution in bfloat16 divided by that in float32, on the CPU.

    The measurement takes 0.02 to 0.4 s.
    """
    # A convolution of 64 channels on 32 x 32 pixels stands for the model: two thirds of a training
    # step are convolutions, and matrix products slow down alike. It is measured, because the
    # instructions that a processor lists do not tell its speed.
    # A separate generator leaves the random numbers of training as they are.
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
        keys: config keys that ask for bfloat16 on the CPU; without any, nothing is measured.
        slowdown: measures the factor.
    """
    factor = slowdown() if keys else 0.0
    if factor > _SLOWDOWN_TO_WARN:
        logger.warning(
            "%s asks for bfloat16, but this processor has no fast instructions for it: a "
            "convolution takes %.1f times as long as in float32. %s is faster here",
            " and ".join(keys),
            factor,
            " and ".join(_SETTING_OFF[key] for key in keys),
        )


_SETTING_OFF = {"SOLVER.AMP": "SOLVER.AMP.ENABLED False", "TEST.AMP_DTYPE": "TEST.AMP_DTYPE ''"}


def _seconds(image: Tensor, kernel: Tensor) -> float:
    # The fastest run counts, because other processes can only slow a run down.
    fastest = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        functional.conv2d(image, kernel, padding=1)
        fastest = min(fastest, time.perf_counter() - start)
        if fastest > _LONG_ENOUGH:
            break
    return fastest
