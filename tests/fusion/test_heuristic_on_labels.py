"""The merging of a label map and masks equals a slow, obvious version, and its corner cases."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.structures import Instances
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.fusion import FusionRule, heuristic_fusion_on_labels

THINGS, NUM_CLASSES = {1, 3}, 5


def slow_fusion(labels, scores, classes, masks, score_threshold, overlap_threshold, least_area):
    """Pixel by pixel, over lists of coordinates."""
    owner, segments = {}, []
    order = [i for _, i in sorted((-s, i) for i, s in enumerate(scores))]
    for i in order:
        pixels = [tuple(p) for p in np.argwhere(masks[i])]
        free = [p for p in pixels if p not in owner]
        if scores[i] < score_threshold or not free:
            continue
        if Fraction(len(pixels) - len(free), len(pixels)) > Fraction(overlap_threshold):
            continue
        segments.append((classes[i], i, len(free)))
        owner.update((p, len(segments)) for p in free)
    for c in range(NUM_CLASSES):
        free = [tuple(p) for p in np.argwhere(labels == c) if tuple(p) not in owner]
        if c not in THINGS and free and len(free) >= least_area:
            segments.append((c, None, len(free)))
            owner.update((p, len(segments)) for p in free)
    ids = np.zeros(labels.shape, np.int32)
    for pixel, segment_id in owner.items():
        ids[pixel] = segment_id
    return ids, segments


def random_case(seed, number, size=(9, 11)):
    rng = np.random.default_rng(seed)
    labels = rng.integers(-2, NUM_CLASSES + 2, size)
    masks = np.zeros((number, *size), bool)
    for mask in masks:
        top, left = rng.integers(0, size[0]), rng.integers(0, size[1])
        box = mask[top : top + rng.integers(0, 8), left : left + rng.integers(0, 8)]
        box[...] = rng.random(box.shape) < 0.8
    scores = np.round(rng.random(number), 1)  # with ties
    return labels, scores.tolist(), rng.choice(sorted(THINGS), number).tolist(), masks


def fuse(labels, scores, classes, masks, **options):
    masks = torch.as_tensor(masks)
    rule = FusionRule(THINGS, NUM_CLASSES, **{"stuff_area_threshold": 4096, **options})
    return heuristic_fusion_on_labels(
        torch.as_tensor(labels),
        rule,
        scores=scores,
        classes=classes,
        mask_of=lambda i: (masks[i], 0, 0),
    )


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 9999), st.integers(0, 12), st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.sampled_from([0, 1, 5, 9]),
)  # fmt: skip
def test_equals_the_slow_rule(seed, number, score_threshold, overlap_threshold, least_area):
    case = random_case(seed, number)
    expected, rows = slow_fusion(*case, score_threshold, overlap_threshold, least_area)
    found, segments = fuse(
        *case,
        score_threshold=score_threshold,
        overlap_threshold=overlap_threshold,
        stuff_area_threshold=least_area,
    )
    assert found.dtype == torch.int32
    np.testing.assert_array_equal(found, expected)
    assert [s["id"] for s in segments] == list(range(1, len(rows) + 1))
    assert [(s["category_id"], s.get("instance_id"), s["area"]) for s in segments] == rows
    assert all(s["isthing"] == (s["category_id"] in THINGS) for s in segments)
    assert all(s["score"] == case[1][s["instance_id"]] for s in segments if s["isthing"])


@pytest.mark.parametrize("number", [100, 400])
def test_many_instances(number):
    case = random_case(7, number, (40, 50))
    expected, rows = slow_fusion(*case, 0.2, 0.75, 5)
    options = {"score_threshold": 0.2, "overlap_threshold": 0.75, "stuff_area_threshold": 5}
    found, segments = fuse(*case, **options)
    np.testing.assert_array_equal(found, expected)
    assert [(s["category_id"], s.get("instance_id"), s["area"]) for s in segments] == rows
    assert sum(s["isthing"] for s in segments) > number / 5


@pytest.mark.parametrize("seed", range(5))
def test_equals_detectron2(seed):
    labels, _, classes, masks = random_case(seed, 8, (20, 30))
    scores = np.random.default_rng(seed).permutation(8) / 8
    instances = Instances((20, 30))
    instances.scores = torch.as_tensor(scores)
    instances.pred_classes = torch.as_tensor(classes)
    instances.pred_masks = torch.as_tensor(masks)
    shifted = np.where(np.isin(labels, [0, 2, 4]), labels + 1, 0)
    theirs, their_segments = combine_semantic_and_instance_outputs(
        instances, torch.as_tensor(shifted), 0.5, 20, 0.3
    )
    ours, segments = fuse(
        labels, scores.tolist(), classes, masks, score_threshold=0.3, stuff_area_threshold=20
    )
    assert torch.equal(ours, theirs)
    assert [s["category_id"] + (not s["isthing"]) for s in segments] == [
        s["category_id"] for s in their_segments
    ]


def test_a_window_is_its_part_of_the_image():
    labels = torch.zeros(6, 8, dtype=torch.uint8)
    window = torch.tensor([[True, False], [True, True]])
    found, segments = heuristic_fusion_on_labels(
        labels,
        FusionRule([1], 2, stuff_area_threshold=0),
        scores=[0.9],
        classes=[1],
        mask_of=lambda i: (window, 4, 3),
    )
    assert found[4:, 3:5].tolist() == [[1, 2], [1, 1]]
    assert [s["area"] for s in segments] == [3, 45]
    assert labels.sum() == 0 and window.sum() == 3


def test_masks_are_asked_for_one_by_one_and_not_under_the_threshold():
    asked = []

    def mask_of(index):
        asked.append(index)
        return torch.ones(2, 2, dtype=torch.bool), 0, 0

    heuristic_fusion_on_labels(
        torch.zeros(2, 2, dtype=torch.long),
        FusionRule([1], 2),
        scores=[0.2, 0.5, 0.9, 0.49],
        classes=[1, 1, 1, 1],
        mask_of=mask_of,
    )
    assert asked == [2, 1]


@pytest.mark.parametrize("number", [0, 3])
@pytest.mark.parametrize("label", [-1, 1, 255])
def test_all_void(number, label):
    labels = np.full((4, 5), label)
    masks = np.zeros((number, 4, 5), bool)  # empty masks
    found, segments = fuse(labels, [1.0] * number, [1] * number, masks, stuff_area_threshold=0)
    assert not found.any() and segments == []


def test_only_stuff_and_only_instances():
    _, _, classes, masks = random_case(1, 4)
    found, segments = fuse(np.zeros((9, 11), int), [0.0] * 4, classes, masks)
    assert not found.any() and segments == []  # 99 pixels are too few by default
    found, segments = fuse(
        np.zeros((9, 11), int), [0.0] * 4, classes, masks, stuff_area_threshold=99
    )
    assert (found == 1).all() and segments[0]["area"] == 99
    whole = np.ones((1, 9, 11), bool)
    found, segments = fuse(np.zeros((9, 11), int), [0.5], [3], whole, stuff_area_threshold=0)
    assert (found == 1).all() and [s["category_id"] for s in segments] == [3]
    labels = torch.zeros((9, 11), dtype=torch.int64)
    options = {
        "scores": [0.5],
        "classes": [0],
        "mask_of": lambda i: (torch.as_tensor(whole[0]), 0, 0),
    }
    found, segments = heuristic_fusion_on_labels(labels, FusionRule([0], 1), **options)
    assert (found == 1).all() and len(segments) == 1  # a data set without stuff
