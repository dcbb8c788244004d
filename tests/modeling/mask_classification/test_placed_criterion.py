"""Targets of placed queries: the map of centres, its loss, and which pairs may be matched."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.modeling.mask_classification.matcher import HungarianMatcher
from panoptic_ext.modeling.mask_classification.placed_criterion import (
    PlacedCriterion,
    centre_map,
    outside_target,
)
from panoptic_ext.modeling.mask_classification.targets import IdMapTargets, PlaneTargets
from panoptic_ext.modeling.transformer_decoder.outputs import DecoderOutputs, Predictions
from tests.modeling.mask_classification.random_targets import planes, random_id_map


def naive_centre_map(masks, size):
    """By loops over cells and objects; the smallest of overlapping masks owns a cell."""
    order = masks.flatten(1).sum(1).argsort(stable=True)
    masks = masks[order]
    height, width = masks.shape[1:]
    found, boxes = torch.zeros(size), torch.ones(4, *size)
    owners = torch.full(size, -1)
    for row in range(size[0]):
        for column in range(size[1]):
            y, x = (row + 0.5) / size[0], (column + 0.5) / size[1]
            inside = masks[:, int(y * height), int(x * width)].nonzero()
            if not len(inside):
                continue
            i = int(inside[0])
            owners[row, column] = i
            rows, columns = masks[i].nonzero(as_tuple=True)
            top, bottom = rows.min() / height, (rows.max() + 1) / height
            left, right = columns.min() / width, (columns.max() + 1) / width
            sides = (left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2
            boxes[:, row, column] = torch.stack(sides)
            dy = (y - (top + bottom) / 2) / ((bottom - top) / 2)
            dx = (x - (left + right) / 2) / ((right - left) / 2)
            found[row, column] = math.exp(-2 * (dx**2 + dy**2))
    for i in range(len(masks)):
        if (owners == i).any():
            found[owners == i] /= found[owners == i].max()
    return found, boxes


@settings(max_examples=60, deadline=None)
@given(
    *(st.integers(2, 14), st.integers(2, 14), st.integers(0, 5), st.integers(0, 99)),
    *(st.booleans(), st.integers(1, 9), st.integers(1, 9)),
)
def test_centre_map_equals_naive_one(height, width, count, seed, overlapping, rows, columns):
    id_map = random_id_map(height, width, count, seed)
    masks, labels = planes(id_map, count), torch.zeros(count, dtype=torch.int64)
    if overlapping:
        masks = masks | masks.roll(1, -1)
        target = PlaneTargets(labels, masks)
    else:
        target = IdMapTargets(labels, id_map)
    found, boxes = centre_map(target, (rows, columns))
    expected, expected_boxes = naive_centre_map(masks > 0, (rows, columns))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(boxes, expected_boxes)


def test_an_object_around_a_hole_has_its_best_cell_on_itself():
    id_map = torch.zeros(40, 40, dtype=torch.int32)
    id_map[4:36, 4:36] = 1
    id_map[10:30, 10:30] = 0
    found, _ = centre_map(IdMapTargets(torch.tensor([0]), id_map), (40, 40))
    assert found.max() == 1
    assert not found[id_map != 1].any()


def two_things():
    """Things on the left and on the right, 20 x 40."""
    id_map = torch.zeros(20, 40, dtype=torch.int32)
    id_map[5:15, 2:12], id_map[5:15, 28:38] = 1, 2
    return IdMapTargets(torch.tensor([1, 1]), id_map)


PLACES = torch.tensor([[0.8, 0.5], [0.2, 0.5], [0.5, 0.1]])  # right, left, on the ground


def test_placed_queries_are_kept_to_their_thing():
    target = two_things()
    wrong = outside_target(PLACES, target)
    assert (~wrong).tolist() == [[False, True], [True, False], [False, False]]
    assert torch.equal(wrong, outside_target(PLACES, as_masks(target)))


def as_masks(target):
    masks = torch.stack([target.id_map == i + 1 for i in range(len(target))])
    return PlaneTargets(target.labels, masks)


def matched(outputs, target, places):
    """The query that each target is matched to."""
    avoided = [outside_target(places, target)]
    queries, targets = HungarianMatcher(num_points=500)([outputs], [target], avoided)[0][0]
    return dict(zip(targets.tolist(), queries.tolist(), strict=True))


def test_the_matcher_follows_the_places_but_leaves_no_thing_out():
    target = two_things()
    outputs = Predictions(torch.zeros(1, 3, 3), torch.zeros(1, 3, 5, 10))
    found = matched(outputs, target, PLACES)
    assert (found[0], found[1]) == (1, 0)
    nowhere = PLACES[2:].expand(3, -1)
    assert len(matched(outputs, target, nowhere)) == 2


def test_a_place_decides_however_much_its_mask_costs():
    """The window of a query in a large thing is far too small at first: logits of -1000."""
    target = two_things()
    outputs = Predictions(torch.zeros(1, 3, 3), torch.zeros(1, 3, 5, 10))
    outputs.pred_masks[0, :2] = -1000.0
    found = matched(outputs, target, PLACES)
    assert (found[0], found[1]) == (1, 0)


def test_an_object_on_a_larger_one_has_a_centre():
    masks = torch.zeros(2, 40, 40, dtype=torch.bool)
    masks[0, 2:38, 2:38] = masks[1, 10:20, 10:20] = True
    target = PlaneTargets(torch.zeros(2, dtype=torch.int64), masks)
    found, _ = centre_map(target, (40, 40))
    assert found[masks[1]].max() == 1 and found[masks[0] & ~masks[1]].max() == 1


def test_a_decoder_without_the_maps_it_promises_is_named():
    criterion = PlacedCriterion(
        stuff_in_map=False,
        num_classes=2,
        matcher=HungarianMatcher(num_points=20),
        weight_dict={},
        no_object_weight=0.1,
        num_points=20,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
    )
    outputs = DecoderOutputs(torch.zeros(1, 3, 3), torch.zeros(1, 3, 5, 10))
    with pytest.raises(TypeError, match="places_queries, but its outputs have no `places`"):
        criterion(outputs, [two_things()])
