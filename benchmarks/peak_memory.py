"""Peak memory of a call, for the other benchmarks."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["peak_growth"]


def peak_growth(call: Callable[[], Any], device: str = "cpu") -> float:
    """MiB by which a call raises the peak of memory above what was held before it.

    Args:
        call: runs once; its result is not kept.
        device: "cpu" measures the resident memory of this process, any other device the memory
            that torch allocates on CUDA.

    Returns:
        NaN if the system lacks what Linux offers for resident memory.
    """
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        # Freed memory goes back to the system first, because reusing it would not raise the peak.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the present size
    except OSError:
        return float("nan")
    resident = _resident("VmRSS")
    call()
    return _resident("VmHWM") - resident


def _resident(field: str) -> float:
    """VmRSS (the present size) or VmHWM (the peak) of this process, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return float("nan")
