"""Copies from the host to a device for which the host does not wait."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["to_device"]


def to_device(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Copy an array or a tensor of the host to a device, without waiting for CUDA.

    A tensor that is on the device already is returned itself.
    """
    if not isinstance(values, Tensor):
        values = torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "cuda" and values.device.type == "cpu":
        # Page-locked, because a copy of other memory waits for all earlier work on the device.
        pinned = values if values.is_pinned() else values.pin_memory()
        return pinned.to(device, non_blocking=True)
    # The copy is blocking on other devices, which do not keep the array alive until it is done.
    return values.to(device)
