"""Mask inference equals the published steps, on reference vectors and random input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.postprocessing import (
    instance_inference,
    panoptic_inference,
    semantic_inference,
    tiled_resize,
)
from panoptic_ext.postprocessing.tiled_resize import TiledResize
from tests.mask2former_reference import needs_reference, reference_arrays, reference_json
from tests.postprocessing import naive_mask_inference as naive
from tests.tiny.mask_logits import THINGS, blobs, box_of, make_case, sizes_of


def plain_segments(segments):
    return [{key: s[key] for key in ("id", "isthing", "category_id")} for s in segments]


def test_reference_panoptic_cases():
    arrays = reference_arrays("panoptic_inference")
    cases = reference_json("panoptic_inference")
    assert len(cases) == 40
    for case in cases:
        mask_cls, mask_pred, expected = (
            arrays[f"{case['case']}_{name}"]
            for name in ("class_logits", "mask_logits", "panoptic_seg")
        )
        found, segments = panoptic_inference(
            mask_cls,
            mask_pred,
            **sizes_of(mask_pred.shape[1:], stride=1),
            thing_ids=case["things"],
            object_mask_threshold=case["object_mask_threshold"],
            overlap_threshold=case["overlap_threshold"],
        )
        assert found.dtype == torch.int32
        assert torch.equal(found, expected), case["case"]
        assert plain_segments(segments) == case["segments_info"]


@needs_reference
@pytest.mark.parametrize("model", ["resnet", "swin"])
def test_reference_activations(model):
    arrays = reference_arrays(f"{model}_activations")
    table = reference_json(f"{model}_segments")
    mask_cls, mask_pred = arrays["pred_logits"][0], arrays["pred_masks"][0]
    padded = tuple(4 * n for n in mask_pred.shape[1:])
    sizes = {
        "image_size": tuple(arrays["image"].shape[:2]),
        "padded_size": padded,
        "output_size": (table["height"], table["width"]),
    }
    things = range(6)
    panoptic_seg, segments = panoptic_inference(
        mask_cls, mask_pred, **sizes, thing_ids=things, object_mask_threshold=0.0,
        overlap_threshold=0.3,
    )  # fmt: skip
    assert torch.equal(panoptic_seg, arrays["panoptic_seg"])
    assert plain_segments(segments) == table["segments_info"]

    sem_seg = semantic_inference(mask_cls, mask_pred, **sizes)
    torch.testing.assert_close(sem_seg, arrays["sem_seg"].float(), rtol=1e-3, atol=1e-4)

    found = instance_inference(mask_cls, mask_pred, **sizes, top_k=10, thing_ids=things)
    width = table["width"]
    masks = np.unpackbits(arrays["instance_masks"].numpy(), axis=-1)[..., :width].astype(bool)
    expected = sorted(
        zip(arrays["instance_scores"].tolist(), arrays["instance_classes"].tolist(), masks,
            strict=True),
        key=lambda row: -row[0],
    )  # fmt: skip
    order = found.scores.argsort(descending=True)
    assert len(found) == len(expected)
    for row, (score, label, mask) in zip(order.tolist(), expected, strict=True):
        assert found.scores[row].item() == pytest.approx(score, rel=1e-5)
        assert found.pred_classes[row].item() == label
        np.testing.assert_array_equal(found.pred_masks[row].numpy(), mask)


cases = st.tuples(
    st.integers(1, 9),  # queries
    st.tuples(st.integers(1, 24), st.integers(1, 24)),  # mask size
    st.tuples(st.integers(0, 3), st.integers(0, 3)),  # padding
    st.one_of(st.none(), st.tuples(st.integers(1, 150), st.integers(1, 150))),  # output size
    st.integers(0, 999),  # seed
    st.sampled_from([0.5, 4.0, 30.0]),  # steepness
)


@settings(max_examples=60, deadline=None)
@given(cases, st.sampled_from([0.0, 0.3, 0.7]), st.sampled_from([0.0, 0.4, 0.8]))
def test_panoptic_equals_the_naive_steps(case, object_mask_threshold, overlap_threshold):
    queries, size, pad, output, seed, scale = case
    mask_cls, mask_pred = make_case(queries, 5, size, seed, scale)
    sizes = sizes_of(size, pad=pad, output=output)
    found, segments = panoptic_inference(
        mask_cls, mask_pred, **sizes, thing_ids=THINGS,
        object_mask_threshold=object_mask_threshold, overlap_threshold=overlap_threshold,
    )  # fmt: skip
    masks = naive.resize(mask_pred, **sizes)
    expected, expected_segments = naive.panoptic(
        mask_cls, masks, THINGS, object_mask_threshold, overlap_threshold
    )
    assert plain_segments(segments) == expected_segments
    assert torch.equal(found, expected) or ties(mask_cls, masks, found != expected)
    assert [s["area"] for s in segments] == [(found == s["id"]).sum().item() for s in segments]
    best = mask_cls.softmax(-1).max(-1).values.tolist()
    assert all(s["score"] in best and s["score"] > object_mask_threshold for s in segments)


def ties(mask_cls, masks, differ):
    """Whether two queries, or a query and the threshold, are equal there but for rounding."""
    inside = masks.sigmoid()[:, differ]
    values = (mask_cls.softmax(-1)[:, :-1].amax(-1)[:, None] * inside).sort(0).values
    close = (inside - 0.5).abs().amin(0) < 1e-5
    if len(values) > 1:
        close |= (values[1:] - values[:-1]).amin(0) < 1e-5
    return bool(close.all())


@settings(max_examples=30, deadline=None)
@given(cases, st.booleans())
def test_semantic_equals_the_naive_steps(case, resize_first):
    queries, size, pad, output, seed, scale = case
    mask_cls, mask_pred = make_case(queries, 5, size, seed, scale)
    sizes = sizes_of(size, pad=pad, output=output)
    found = semantic_inference(mask_cls, mask_pred, **sizes, resize_first=resize_first)
    if resize_first:
        expected = naive.semantic(mask_cls, naive.resize(mask_pred, **sizes))
    else:
        at_input = {**sizes, "output_size": sizes["image_size"]}
        scores = naive.semantic(mask_cls, naive.resize(mask_pred, **at_input))
        whole = sizes["image_size"]
        expected = naive.resize(scores, whole, whole, sizes["output_size"])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(cases, st.integers(1, 60))
def test_instances_equal_the_naive_steps(case, top_k):
    queries, size, pad, output, seed, scale = case
    mask_cls, mask_pred = make_case(queries, 5, size, seed, scale)
    sizes = sizes_of(size, pad=pad, output=output)
    found = instance_inference(mask_cls, mask_pred, **sizes, top_k=top_k, thing_ids=THINGS)
    expected = naive.instances(mask_cls, naive.resize(mask_pred, **sizes), top_k, THINGS)
    assert found.pred_classes.tolist() == [label for label, _, _ in expected]
    for row, (_, score, mask) in enumerate(expected):
        assert (found.pred_masks[row] != mask).sum() <= 1  # a logit of 0 but for rounding
        if torch.equal(found.pred_masks[row], mask):
            assert found.scores[row].item() == pytest.approx(score, rel=1e-4, abs=1e-6)
        assert found.pred_boxes.tensor[row].tolist() == box_of(found.pred_masks[row])


@pytest.mark.parametrize("queries", [1, 6, 40])
def test_skipped_tiles_change_nothing(queries):
    size = (96, 80)
    mask_cls, _ = make_case(queries, 5, size, seed=queries)
    mask_pred = blobs(queries, size, queries)
    sizes = sizes_of(size, pad=(3, 9))
    found, segments = panoptic_inference(
        mask_cls, mask_pred, **sizes, thing_ids=torch.tensor([True, True, True, False, False]),
        object_mask_threshold=0.1, overlap_threshold=0.5,
    )  # fmt: skip
    masks = naive.resize(mask_pred, **sizes)
    expected, expected_segments = naive.panoptic(mask_cls, masks, THINGS, 0.1, 0.5)
    assert plain_segments(segments) == expected_segments
    differ = found != expected
    assert differ.sum() < 5
    assert ties(mask_cls, masks, differ) or not differ.any()


def test_every_tile_size_gives_the_same(monkeypatch):
    mask_cls, mask_pred = make_case(12, 5, (40, 40), seed=3)
    arguments = dict(
        **sizes_of((40, 40), output=(150, 131)), thing_ids=THINGS, object_mask_threshold=0.0,
        overlap_threshold=0.0,
    )  # fmt: skip
    whole, _ = panoptic_inference(mask_cls, mask_pred, **arguments)
    monkeypatch.setattr(tiled_resize, "_CPU_TILE_VALUES", 1)
    tiled, _ = panoptic_inference(mask_cls, mask_pred, **arguments)
    assert (whole != tiled).sum() <= 2


def test_first_query_wins_a_tie():
    mask_cls = torch.zeros(3, 3)
    mask_cls[:, 0] = 5.0
    found, segments = panoptic_inference(
        mask_cls, torch.full((3, 4, 4), 2.0), **sizes_of((4, 4)), thing_ids={0},
        object_mask_threshold=0.5, overlap_threshold=0.8,
    )  # fmt: skip
    assert torch.equal(found, torch.ones(16, 16, dtype=torch.int32))
    assert len(segments) == 1


def test_nothing_kept():
    mask_cls = torch.zeros(3, 3)
    mask_cls[:, -1] = 9.0
    found, segments = panoptic_inference(
        mask_cls, torch.zeros(3, 4, 4), **sizes_of((4, 4), output=(7, 5)), thing_ids={0},
        object_mask_threshold=0.5, overlap_threshold=0.8,
    )  # fmt: skip
    assert found.shape == (7, 5) and found.dtype == torch.int32 and not found.any()
    assert segments == []


def test_no_instance_is_left():
    found = instance_inference(
        torch.zeros(3, 3), torch.zeros(3, 4, 4), **sizes_of((4, 4)), top_k=5, thing_ids=set()
    )
    assert len(found) == 0 and found.pred_masks.shape == (0, 16, 16)
    assert found.pred_boxes.tensor.shape == (0, 4)


def test_bounds_hold():
    masks = torch.randn(5, 33, 21) * 50
    resize = TiledResize(masks, image_size=(120, 80), padded_size=(132, 84), output_size=(301, 99))
    grid = resize.grid()
    low, high = resize.bounds(grid)
    for number, tile in enumerate(tile for row in grid for tile in row):
        logits = resize.tile(tile)
        assert (logits.amin(1) >= low[number]).all() and (logits.amax(1) <= high[number]).all()


def test_inputs_stay_as_they_are():
    mask_cls, mask_pred = make_case(4, 5, (8, 8), seed=0)
    copies = mask_cls.clone(), mask_pred.clone()
    sizes = sizes_of((8, 8), stride=1)
    panoptic_inference(
        mask_cls, mask_pred, **sizes, thing_ids=THINGS, object_mask_threshold=0.0,
        overlap_threshold=0.0,
    )  # fmt: skip
    semantic_inference(mask_cls, mask_pred, **sizes)
    instance_inference(mask_cls, mask_pred, **sizes, top_k=5)
    assert torch.equal(mask_cls, copies[0]) and torch.equal(mask_pred, copies[1])


def bad_cell(value, dtype=torch.float32):
    """Two sure queries, left and right half; cell (3, 1) of the left one is `value`."""
    mask_cls = torch.tensor([[6.0, 0.0, 0.0], [0.0, 5.0, 0.0]])
    mask_pred = torch.full((2, 8, 8), -3.0)
    mask_pred[0, :, :4] = mask_pred[1, :, 4:] = 3.0
    plain = mask_pred.to(dtype)
    mask_pred = plain.clone()
    mask_pred[0, 3, 1] = value
    # Pixels that cell (3, 1) alone makes up, and those that do not read it.
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[13:15, 5:7] = True
    outside = torch.ones(32, 32, dtype=torch.bool)
    outside[9:19, 1:11] = False
    return mask_cls, plain, mask_pred, inside, outside


BAD = [(float("nan"), False), (float("inf"), True), (float("-inf"), False)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("value", "on"), BAD)
def test_a_logit_that_is_not_finite_spoils_only_its_cell(value, on, dtype):
    mask_cls, plain, mask_pred, inside, outside = bad_cell(value, dtype)
    sizes = sizes_of((8, 8))
    arguments = dict(**sizes, thing_ids={0, 1}, object_mask_threshold=0.5, overlap_threshold=0.5)
    found, segments = panoptic_inference(mask_cls, mask_pred, **arguments)
    expected, expected_segments = panoptic_inference(mask_cls, plain, **arguments)
    assert plain_segments(segments) == plain_segments(expected_segments)
    assert torch.equal(found[outside], expected[outside])
    assert (found[inside] == int(on)).all()

    for resize_first in (True, False):
        scores = semantic_inference(mask_cls, mask_pred, **sizes, resize_first=resize_first)
        expected = semantic_inference(mask_cls, plain, **sizes, resize_first=resize_first)
        assert torch.equal(scores[:, outside], expected[:, outside])
        assert scores.isfinite().all() and ((scores[0, inside] > 0.9) == on).all()

    instances = instance_inference(mask_cls, mask_pred, **sizes, top_k=2)
    expected = instance_inference(mask_cls, plain, **sizes, top_k=2)
    assert instances.pred_classes.tolist() == [0, 1]
    assert torch.equal(instances.pred_masks[:, outside], expected.pred_masks[:, outside])
    assert (instances.pred_masks[0, inside] == on).all()
    assert instances.scores.isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_mask_without_a_finite_logit(value):
    mask_cls, mask_pred, *_ = bad_cell(0.0)
    mask_pred[0] = value
    sizes = sizes_of((8, 8))
    found, segments = panoptic_inference(
        mask_cls, mask_pred, **sizes, thing_ids={0, 1}, object_mask_threshold=0.5,
        overlap_threshold=0.0,
    )  # fmt: skip
    classes = {s["id"]: s["category_id"] for s in segments}
    assert 0 in classes.values() if value > 0 else list(classes.values()) == [1]
    assert set(found.unique().tolist()) <= {0, *classes}
    assert semantic_inference(mask_cls, mask_pred, **sizes).isfinite().all()
    instances = instance_inference(mask_cls, mask_pred, **sizes, top_k=2)
    assert instances.pred_masks[0].all() if value > 0 else not instances.pred_masks[0].any()


@pytest.mark.gpu
def test_cuda_gives_the_same_map(gpu):
    mask_cls, mask_pred = make_case(30, 5, (64, 64), seed=1)
    arguments = dict(
        **sizes_of((64, 64), pad=(3, 5), output=(300, 211)), thing_ids=THINGS,
        object_mask_threshold=0.0, overlap_threshold=0.3,
    )  # fmt: skip
    expected, segments = panoptic_inference(mask_cls, mask_pred, **arguments)
    found, found_segments = panoptic_inference(mask_cls.to(gpu), mask_pred.to(gpu), **arguments)
    assert (found.cpu() != expected).sum() <= 3
    assert plain_segments(found_segments) == plain_segments(segments)
