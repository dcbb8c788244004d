"""Indices of queries, chosen on the host: their unions, and their copies on the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from panoptic_ext.host_copies import to_device

__all__ = ["DeviceIndices", "union"]


def union(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The union of indices, each once; the longest part itself if it has all of them.

    Args:
        parts: one or more arrays (n,) of int64, each ascending; n may be 0.

    Returns:
        (m,) int64, ascending.
    """
    longest = max(parts, key=len)
    if sum(len(part) > 0 for part in parts) <= 1:
        return longest
    merged = np.unique(np.concatenate(parts))
    return longest if len(merged) == len(longest) else merged


class DeviceIndices:
    """Copies index arrays to the device, and caches the last copy.

    On a GPU all tiles have the same indices, so that they are copied once.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cached: tuple[np.ndarray, Tensor] | None = None

    def __call__(self, indices: np.ndarray) -> Tensor:
        """(n,) int64 -> the same on the device; on a CPU a view of it."""
        if self._device.type == "cpu":
            return torch.from_numpy(indices)
        if self._cached is None or not np.array_equal(self._cached[0], indices):
            self._cached = indices, to_device(indices, self._device)
        return self._cached[1]
