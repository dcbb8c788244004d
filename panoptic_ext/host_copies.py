"""Copies between the host and a device for which the host does not wait."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["to_device"]


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """An array of the host as a tensor on the device.

    From memory that is not pinned the host waits for CUDA to be done with all its work so far. On
    other devices the copy is waited for: nothing there keeps the array until it is done.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
