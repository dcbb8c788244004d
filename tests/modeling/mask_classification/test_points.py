"""Points at which masks are compared: those of the loss lie where a mask is undecided."""

from __future__ import annotations

import torch

from panoptic_ext.modeling.mask_classification.points import uncertain_points


def test_uncertain_points_are_where_the_mask_is_undecided():
    ramp = torch.linspace(-8, 8, 64).expand(3, 32, 64).contiguous()
    torch.manual_seed(0)
    points = uncertain_points(ramp, 400, oversample_ratio=3.0, importance_sample_ratio=0.75)
    assert points.shape == (3, 400, 2)
    assert points.min() >= 0 and points.max() <= 1
    # A quarter of the candidates is kept, nearly all within an eighth of the width of the middle;
    # the others lie at the edge, where zero padding makes the mask undecided as well.
    away = (points[..., 0] - 0.5).abs()
    assert (away[:, :300] < 0.16).float().mean() > 0.9
    assert (away[:, 300:] < 0.16).float().mean() < 0.5


def test_uncertain_points_of_no_mask():
    points = uncertain_points(
        torch.zeros(0, 4, 4), 40, oversample_ratio=3.0, importance_sample_ratio=0.75
    )
    assert points.shape == (0, 40, 2)
