"""Copies from the host to a device for which the host does not wait."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["to_device"]


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array of the host into a tensor on the device, without waiting for CUDA."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "cuda":
        # Pinned, because a copy from pageable memory waits for all earlier work on the device.
        return tensor.pin_memory().to(device, non_blocking=True)
    # The copy is blocking on other devices, which do not keep the array alive until it is done.
    return tensor.to(device)
