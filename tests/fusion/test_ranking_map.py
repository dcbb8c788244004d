"""Reduced masks, class channels and ranks against definitions written one number at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.fusion.ranking_map import (
    class_channels,
    reduced_labels,
    reduced_masks,
    reduced_size,
    spatial_ranking_scores,
)


def slow_value(mask, box, x, y):
    """Logit of a mask at a point of the image, or None outside its box."""
    x1, y1, x2, y2 = box
    if not (x1 <= x < x2 and y1 <= y < y2):
        return None
    cells = len(mask)
    total = 0.0
    at_x = min(max((x - x1) / (x2 - x1) * cells - 0.5, 0), cells - 1)
    at_y = min(max((y - y1) / (y2 - y1) * cells - 0.5, 0), cells - 1)
    for row in range(cells):
        for column in range(cells):
            near = max(0, 1 - abs(at_x - column)) * max(0, 1 - abs(at_y - row))
            total += near * mask[row][column]
    return total


def random_instances(seed, number, image_size, cells=5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor([image_size[1], image_size[0]]).float()
    corner = (torch.rand(number, 2, generator=generator) * 1.2 - 0.1) * extent
    size = torch.rand(number, 2, generator=generator) * extent * 0.7
    logits = torch.randn(number, cells, cells, generator=generator) * 3 + 1
    return torch.cat((corner, corner + size), 1), logits.to(dtype)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 999), st.integers(0, 4), st.integers(1, 40), st.integers(1, 40),
    st.integers(1, 12), st.integers(1, 12),
)  # fmt: skip
def test_masks_equal_the_slow_ones(seed, number, height, width, rows, columns):
    boxes, logits = random_instances(seed, number, (height, width))
    masks = reduced_masks(boxes, logits, image_size=(height, width), size=(rows, columns))
    assert masks.shape == (number, rows, columns) and masks.dtype == torch.bool
    for mask, box, values in zip(masks, boxes.tolist(), logits.tolist(), strict=True):
        expected = [
            [slow_value(values, box, (c + 0.5) * width / columns, (r + 0.5) * height / rows)
             for c in range(columns)]
            for r in range(rows)
        ]  # fmt: skip
        sure = [v for row in expected for v in row if v is not None and abs(v) > 1e-3]
        if any(v > 0 for v in sure):
            for found_row, row in zip(mask.tolist(), expected, strict=True):
                for found, value in zip(found_row, row, strict=True):
                    if value is None or abs(value) > 1e-3:
                        assert found == (value is not None and value > 0)
        elif all(abs(v) > 1e-3 for row in expected for v in row if v is not None):
            assert mask.sum() <= 1


def one(box, logits=None, image_size=(20, 40), size=(4, 8)):
    logits = torch.ones(1, 3, 3) if logits is None else logits
    return reduced_masks(torch.tensor([box]), logits, image_size=image_size, size=size)[0]


def test_small_empty_and_outside_masks():
    whole = one([0.0, 0.0, 40.0, 20.0])
    assert whole.all()
    small = one([11.0, 6.0, 12.0, 7.0])  # between the centres of the cells
    assert small.nonzero().tolist() == [[1, 2]]
    assert one([39.5, 19.5, 41.0, 20.4]).nonzero().tolist() == []  # its centre is outside
    assert one([39.0, 19.0, 40.0, 20.0]).nonzero().tolist() == [[3, 7]]
    assert not one([5.0, 5.0, 5.0, 9.0]).any()  # no area
    assert not one([9.0, 9.0, 5.0, 5.0]).any()
    assert not one([-30.0, 0.0, -10.0, 20.0]).any()
    assert not one([math.nan, 0.0, 40.0, 20.0]).any()
    assert not one([0.0, 0.0, 40.0, 20.0], -torch.ones(1, 3, 3)).any()
    assert not one([11.0, 6.0, 12.0, 7.0], -torch.ones(1, 3, 3)).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_inputs(dtype):
    boxes, logits = random_instances(3, 6, (64, 64), dtype=dtype)
    options = {"image_size": (64, 64), "size": (16, 16)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = reduced_masks(boxes, logits, **options)
    assert torch.equal(found, reduced_masks(boxes, logits.float(), **options))


def test_a_scaled_image_has_the_same_map():
    boxes, logits = random_instances(5, 8, (60, 90))
    size = reduced_size((60, 90), 30)
    assert size == (20, 30) == reduced_size((120, 180), 30)
    assert reduced_size((1, 1000), 30) == (1, 30)
    assert torch.equal(
        reduced_masks(boxes, logits, image_size=(60, 90), size=size),
        reduced_masks(boxes * 2, logits, image_size=(120, 180), size=size),
    )


def test_channels_of_overlapping_instances():
    masks = torch.zeros(3, 2, 3, dtype=torch.bool)
    masks[0, 0], masks[1, :, 1], masks[2, 1] = True, True, True
    channels = class_channels(masks, torch.tensor([2, 2, 0]), 3)
    assert channels.tolist() == [
        [[0, 0, 0], [1, 1, 1]],
        [[0, 0, 0], [0, 0, 0]],
        [[1, 1, 1], [0, 1, 0]],
    ]
    assert class_channels(masks[:0], torch.zeros(0, dtype=torch.int64), 3).shape == (3, 2, 3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(0, 5), st.integers(1, 4), st.integers(1, 6))
def test_ranks_equal_the_slow_ones(seed, number, things, side):
    generator = torch.Generator().manual_seed(seed)
    ranking_map = torch.rand(things, side, side + 1, generator=generator)
    masks = torch.rand(number, side, side + 1, generator=generator) < 0.4
    classes = torch.randint(0, things, (number,), generator=generator)
    expected = []
    for mask, label in zip(masks, classes.tolist(), strict=True):
        values = [ranking_map[label, y, x].item() for y, x in mask.nonzero().tolist()]
        expected.append(sum(values) / len(values) if values else 0.0)
    found = spatial_ranking_scores(ranking_map, masks, classes)
    assert found.shape == (number,)
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("things", [1, 3, 7, 80])
def test_an_even_map_ranks_all_alike(things):
    masks = torch.rand(50, 30, 40, generator=torch.Generator().manual_seed(0)) < 0.5
    even = torch.zeros(things, 30, 40).softmax(0)
    ranks = spatial_ranking_scores(even, masks, torch.arange(50) % things)
    assert len(set(ranks.tolist())) == 1


def test_labels_at_the_centres_of_cells():
    labels = torch.arange(6 * 8).view(6, 8)
    assert torch.equal(reduced_labels(labels, (6, 8)), labels)
    assert reduced_labels(labels, (2, 2)).tolist() == [[8 + 2, 8 + 6], [4 * 8 + 2, 4 * 8 + 6]]
    assert reduced_labels(labels, (12, 16))[::2, ::2].equal(labels)
