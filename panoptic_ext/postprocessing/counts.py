"""Counting how often each whole number occurs, without the host waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["count_values"]

_LANES = 256  # sums kept apart for each number on a GPU, where additions to one address queue up


def count_values(values: Tensor, length: int, weights: Tensor | None = None) -> Tensor:
    """Count the values, or add up their weights, as `torch.bincount` does.

    On CUDA the host waits for `torch.bincount`, which looks for the least and the greatest value.

    Args:
        values: (N,) integers in 0..length - 1.
        length: of the result.
        weights: (N,) float; None counts.

    Returns:
        (length,) int64, or of the weights' dtype.
    """
    if values.device.type == "cpu":
        return torch.bincount(values, weights, minlength=length)
    lanes = torch.arange(len(values), device=values.device) % _LANES
    if weights is None:
        weights = torch.ones((), dtype=torch.int64, device=values.device).expand(len(values))
    sums = torch.zeros(length * _LANES, dtype=weights.dtype, device=values.device)
    sums.scatter_add_(0, values.long() * _LANES + lanes, weights)
    return sums.view(length, _LANES).sum(1)
