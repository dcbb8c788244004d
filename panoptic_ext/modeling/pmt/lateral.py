"""What PMT's decoder takes from one depth of its frozen encoder.

Shapes: B images, T tokens (prefix tokens, then patches row by row), D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["LateralConnection"]


class LateralConnection(nn.Module):
    """Batch norm, a residual MLP and a learned scale of each channel, for one depth."""

    def __init__(self, dim: int, *, synchronized: bool = False) -> None:
        """
        Args:
            dim: D.
            synchronized: whether the batch norm's statistics are those of the batches of all GPUs.
        """
        super().__init__()
        self.norm = nn.SyncBatchNorm(dim) if synchronized else nn.BatchNorm1d(dim)
        self.project = nn.Sequential(nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, dim))
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D). Statistics are those of all tokens, prefix tokens included."""
        normed = self.norm(tokens.flatten(0, 1)).view_as(tokens)
        return (normed + self.project(normed)) * self.scale
