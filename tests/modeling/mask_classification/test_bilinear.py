"""Bilinear sampling of predicted masks equals grid_sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.modeling.mask_classification.bilinear import (
    sample_at_common_points,
    sample_masks,
)


def grid_sampled(masks: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """(N, H, W) at (N, P, 2), the definition."""
    grid = 2 * points[:, :, None] - 1
    return F.grid_sample(masks[:, None].to(points.dtype), grid, align_corners=False)[:, 0, :, 0]


sizes = st.integers(1, 9)


@settings(max_examples=30, deadline=None)
@given(sizes, sizes, st.integers(1, 5), st.integers(0, 99))
def test_predictions_at_common_points_equal_grid_sample(height, width, count, seed):
    masks = torch.randn(count, height, width, generator=torch.Generator().manual_seed(seed))
    points = torch.rand(11, 2)
    expected = grid_sampled(masks, points.expand(count, -1, -1))
    torch.testing.assert_close(sample_at_common_points(masks, points), expected)
    torch.testing.assert_close(sample_masks(masks, points.expand(count, -1, -1)), expected)
