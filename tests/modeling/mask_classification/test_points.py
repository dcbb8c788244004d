"""Sampling an id map equals grid_sample on one mask a segment."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.modeling.mask_classification.point_drawing import uncertain_points
from panoptic_ext.modeling.mask_classification.points import (
    MaskTargets,
    sample_at_common_points,
    sample_masks,
)


def grid_sampled(masks: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """(N, H, W) at (N, P, 2), the definition."""
    grid = 2 * points[:, :, None] - 1
    return F.grid_sample(masks[:, None].to(points.dtype), grid, align_corners=False)[:, 0, :, 0]


def random_id_map(height: int, width: int, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, count + 1, (height, width), generator=generator, dtype=torch.int32)


def planes(id_map: torch.Tensor, count: int) -> torch.Tensor:
    return id_map[None] == torch.arange(1, count + 1)[:, None, None]


sizes = st.integers(1, 9)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.integers(0, 5), st.integers(0, 99), st.booleans())
def test_common_points_equal_grid_sample(height, width, count, seed, overlapping):
    id_map = random_id_map(height, width, count, seed)
    masks = planes(id_map, count)
    labels = torch.zeros(count, dtype=torch.int64)
    points = torch.rand(17, 2, dtype=torch.float64) * 1.4 - 0.2
    targets = MaskTargets.from_masks(masks, labels) if overlapping else MaskTargets(labels, id_map)
    expected = points.new_zeros(0, 17)
    if count:
        expected = grid_sampled(masks, points.expand(count, -1, -1))
    torch.testing.assert_close(targets.sample(points), expected)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.integers(1, 5), st.integers(0, 99), st.booleans())
def test_own_points_equal_grid_sample(height, width, count, seed, overlapping):
    id_map = random_id_map(height, width, count, seed)
    masks = planes(id_map, count)
    labels = torch.zeros(count, dtype=torch.int64)
    targets = MaskTargets.from_masks(masks, labels) if overlapping else MaskTargets(labels, id_map)
    rows = torch.randint(0, count, (7,))
    points = torch.rand(7, 13, 2, dtype=torch.float64)
    torch.testing.assert_close(targets.sample_each(rows, points), grid_sampled(masks[rows], points))


@settings(max_examples=30, deadline=None)
@given(sizes, sizes, st.integers(1, 5), st.integers(0, 99))
def test_predictions_at_common_points_equal_grid_sample(height, width, count, seed):
    masks = torch.randn(count, height, width, generator=torch.Generator().manual_seed(seed))
    points = torch.rand(11, 2)
    expected = grid_sampled(masks, points.expand(count, -1, -1))
    torch.testing.assert_close(sample_at_common_points(masks, points), expected)
    torch.testing.assert_close(sample_masks(masks, points.expand(count, -1, -1)), expected)


def test_pixel_centres_give_the_id_map_back():
    id_map = random_id_map(6, 5, 3, seed=0)
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(5), indexing="ij")
    points = torch.stack(((columns + 0.5) / 5, (rows + 0.5) / 6), -1).reshape(-1, 2)
    sampled = MaskTargets(torch.zeros(3, dtype=torch.int64), id_map).sample(points)
    torch.testing.assert_close(sampled, planes(id_map, 3).flatten(1).float())


def test_many_targets_need_no_plane_each():
    id_map = torch.arange(1, 376, dtype=torch.int32).reshape(15, 25)
    sampled = MaskTargets(torch.zeros(375, dtype=torch.int64), id_map).sample(torch.rand(100, 2))
    assert sampled.shape == (375, 100)
    assert sampled.sum(0).max() <= 1 + 1e-5


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


def test_targets_are_an_id_map_or_masks():
    with pytest.raises(ValueError, match="exactly one"):
        MaskTargets(torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="one label"):
        MaskTargets.from_masks(torch.zeros(2, 3, 3), torch.zeros(1, dtype=torch.int64))


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, st.integers(0, 5), st.integers(0, 99), st.booleans())
def test_label_map_reads_the_nearest_pixel(height, width, count, seed, overlapping):
    size = (4 * height, 4 * width)
    id_map = random_id_map(*size, count, seed)
    labels = torch.randint(0, 7, (count,), generator=torch.Generator().manual_seed(seed))
    given_masks = MaskTargets.from_masks(planes(id_map, count), labels)
    targets = given_masks if overlapping else MaskTargets(labels=labels, id_map=id_map)
    found = targets.label_map((height, width))
    for y in range(height):
        for x in range(width):
            number = int(id_map[4 * y + 2, 4 * x + 2])
            assert int(found[y, x]) == (int(labels[number - 1]) if number else -1)


def test_label_map_of_overlapping_masks_takes_the_first():
    masks = torch.ones(2, 3, 3, dtype=torch.bool)
    masks[0, 1:] = False
    targets = MaskTargets.from_masks(masks, torch.tensor([5, 2]))
    assert targets.label_map((3, 3)).tolist() == [[5] * 3, [2] * 3, [2] * 3]
