"""Waits of the host for a real GPU, as torch reports them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["waits_of"]


def waits_of(call: Callable[[], Any], device: str) -> tuple[Any, int]:
    """The result of a call, and how often the host waited for CUDA in it; 0 on other devices."""
    if device == "cpu":
        return call(), 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            result = call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return result, sum("synchroniz" in str(warning.message) for warning in caught)
