"""Targets: sampling equals grid_sample on one mask a target, boxes and maps equal naive ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.modeling.mask_classification.targets import (
    IdMapTargets,
    MaskTargets,
    PlaneTargets,
)
from tests.modeling.mask_classification.random_targets import planes, random_id_map, targets_of
from tests.modeling.mask_classification.test_bilinear import grid_sampled, sizes


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.integers(0, 5), st.integers(0, 99), st.booleans())
def test_common_points_equal_grid_sample(height, width, count, seed, overlapping):
    id_map = random_id_map(height, width, count, seed)
    masks = planes(id_map, count)
    labels = torch.zeros(count, dtype=torch.int64)
    points = torch.rand(17, 2, dtype=torch.float64) * 1.4 - 0.2
    targets = targets_of(id_map, labels, overlapping)
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
    targets = targets_of(id_map, labels, overlapping)
    rows = torch.randint(0, count, (7,))
    points = torch.rand(7, 13, 2, dtype=torch.float64)
    torch.testing.assert_close(targets.sample_each(rows, points), grid_sampled(masks[rows], points))


def test_pixel_centres_give_the_id_map_back():
    id_map = random_id_map(6, 5, 3, seed=0)
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(5), indexing="ij")
    points = torch.stack(((columns + 0.5) / 5, (rows + 0.5) / 6), -1).reshape(-1, 2)
    sampled = IdMapTargets(torch.zeros(3, dtype=torch.int64), id_map).sample(points)
    torch.testing.assert_close(sampled, planes(id_map, 3).flatten(1).float())


def test_many_targets_need_no_plane_each():
    id_map = torch.arange(1, 376, dtype=torch.int32).reshape(15, 25)
    sampled = IdMapTargets(torch.zeros(375, dtype=torch.int64), id_map).sample(torch.rand(100, 2))
    assert sampled.shape == (375, 100)
    assert sampled.sum(0).max() <= 1 + 1e-5


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, st.integers(0, 5), st.integers(0, 99), st.booleans())
def test_label_map_reads_the_nearest_pixel(height, width, count, seed, overlapping):
    size = (4 * height, 4 * width)
    id_map = random_id_map(*size, count, seed)
    labels = torch.randint(0, 7, (count,), generator=torch.Generator().manual_seed(seed))
    targets = targets_of(id_map, labels, overlapping)
    found = targets.label_map((height, width))
    for y in range(height):
        for x in range(width):
            number = int(id_map[4 * y + 2, 4 * x + 2])
            assert int(found[y, x]) == (int(labels[number - 1]) if number else -1)


def test_label_map_of_overlapping_masks_takes_the_first():
    masks = torch.ones(2, 3, 3, dtype=torch.bool)
    masks[0, 1:] = False
    targets = PlaneTargets(torch.tensor([5, 2]), masks)
    assert targets.label_map((3, 3)).tolist() == [[5] * 3, [2] * 3, [2] * 3]


def naive_boxes(masks: torch.Tensor) -> torch.Tensor:
    boxes = []
    for mask in masks:
        rows, columns = mask.nonzero(as_tuple=True)
        if not len(rows):
            boxes.append([0.0, 0.0, 1.0, 1.0])  # the whole image
            continue
        height, width = mask.shape
        boxes.append(
            [
                columns.min().item() / width,
                rows.min().item() / height,
                (columns.max().item() + 1) / width,
                (rows.max().item() + 1) / height,
            ]
        )
    return torch.tensor(boxes).view(-1, 4)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 6), st.integers(0, 99), st.booleans())
def test_boxes_equal_naive_ones(height, width, count, seed, overlapping):
    id_map = random_id_map(height, width, count, seed)
    masks, labels = planes(id_map, count), torch.zeros(count, dtype=torch.int64)
    targets = targets_of(id_map, labels, overlapping)
    torch.testing.assert_close(targets.boxes(), naive_boxes(masks))


def test_targets_have_one_of_two_forms():
    with pytest.raises(TypeError, match="abstract"):
        MaskTargets(torch.zeros(1, dtype=torch.int64), torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"2 masks for 1 labels in a\.png; give one label"):
        PlaneTargets(torch.zeros(1, dtype=torch.int64), torch.zeros(2, 3, 3), "a.png")


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, st.integers(0, 5), st.integers(0, 99), st.booleans())
def test_things_are_the_same_masks_without_the_others(height, width, count, seed, overlapping):
    id_map = random_id_map(height, width, count, seed)
    isthing = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.5
    both = targets_of(id_map, torch.arange(count) + 10, overlapping)
    both.isthing = isthing
    things = both.things()
    assert things.labels.tolist() == (both.labels[isthing]).tolist()
    points = torch.rand(19, 2)
    assert torch.equal(things.sample(points), both.sample(points)[isthing])


def test_targets_that_are_all_things_are_not_copied():
    target = IdMapTargets(torch.tensor([3]), torch.ones(2, 2), isthing=torch.tensor([True]))
    assert target.things() is target


def test_targets_that_do_not_know_their_things_say_so():
    with pytest.raises(ValueError, match="without `isthing`"):
        IdMapTargets(torch.tensor([3]), torch.ones(2, 2)).things()
