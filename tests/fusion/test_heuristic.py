"""The fast heuristic fusion equals Detectron2's functions, pixel by pixel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from torch import Tensor

from panoptic_ext.fusion import (
    Detections,
    FusionRule,
    heuristic_fusion,
    heuristic_fusion_detectron2,
    heuristic_fusion_on_labels,
    windows,
)
from tests.fusion import dense_fusion as dense
from tests.fusion.dense_fusion import Case, make_case

FUSIONS = [heuristic_fusion, heuristic_fusion_detectron2]
CORNERS: dict[str, dict[str, Any]] = {
    "no instance": {"count": 0},
    "all filtered": {"count": 5, "score_threshold": 1.0, "best_score": 0.9},
    "no stuff": {"count": 5, "stuff": 0},
    "only stuff": {"count": 0, "things": 0},
    "all void": {"count": 0, "stuff_area_threshold": 10**6},
    "stuff policy": {"count": 5, "void_policy": "stuff"},
    "no stuff, stuff policy": {"count": 5, "stuff": 0, "void_policy": "stuff"},
    "no threshold": {"count": 9, "stuff_area_threshold": 0, "overlap_threshold": 1.0},
    "ties": {"count": 9, "whole_logits": True},
}


def upstream(case: Case, boxes: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
    """Detectron2's route from raw detections; instance_id counts boxes that are not empty."""
    size = tuple(case.sem_seg.shape[1:])
    raw = Instances(size, scores=case.scores.clone(), pred_classes=case.classes.clone())
    raw.pred_boxes = Boxes(boxes.clone())
    raw.pred_masks = case.mask_logits.float().sigmoid()[:, None]
    found = detector_postprocess(raw, *size)
    things = torch.tensor(case.thing_ids, dtype=torch.int64)
    labels = case.sem_seg.max(dim=0).indices
    labels = torch.where(torch.isin(labels, things), 0, labels + 1)
    names = ("overlap_threshold", "stuff_area_threshold", "score_threshold")
    options = [case.options[name] for name in names]
    return combine_semantic_and_instance_outputs(found, labels, *options)


def clipped(case: Case) -> Case:
    """Boxes as a detector gives them: inside the image, none empty."""
    height, width = case.sem_seg.shape[1:]
    boxes = case.boxes.clone()
    boxes[:, 0::2].clamp_(0, width)
    boxes[:, 1::2].clamp_(0, height)
    good = Boxes(boxes).nonempty()
    parts = {name: value[good] for name, value in case.instances.items()}
    return replace(case, **{**parts, "boxes": boxes[good]})


def by_identity(segments: list[dict[str, Any]]) -> list[tuple]:
    return [
        (s["id"], s["isthing"], s["category_id"], s.get("score"), s.get("instance_id"))
        for s in segments
    ]


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("seed", range(12))
def test_equals_detectron2s_route(fusion, seed: int) -> None:
    case = clipped(make_case(seed, 10, size=(30, 40), overlap_threshold=0.7))
    expected, wanted = upstream(case, case.boxes)
    case.options["stuff_area_threshold"] = 4
    found, segments = case.fuse(fusion)
    assert torch.equal(found, expected)
    assert found.dtype == expected.dtype
    stuff = [{**s, "category_id": s["category_id"] - (not s["isthing"])} for s in wanted]
    assert by_identity(segments) == by_identity(stuff)
    assert len(segments) > 3
    dense.check_consistent(found, segments)


@given(case=dense.cases())
@settings(max_examples=150, deadline=None)
def test_the_fast_one_equals_detectron2s(case: Case) -> None:
    expected = case.fuse(heuristic_fusion_detectron2)
    for device in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(windows, "_runs_async", lambda _, device=device: device)
            found = case.fuse(heuristic_fusion)
        assert torch.equal(found[0], expected[0])
        assert found[1] == expected[1]


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("corner", CORNERS)
def test_corner_cases(fusion, corner: str) -> None:
    for seed in range(5):
        case = make_case(seed, **CORNERS[corner])
        found, segments = case.fuse(fusion)
        dense.check_consistent(found, segments)
        if corner == "all void":
            assert segments == []
        if corner == "all filtered":
            assert not any(s["isthing"] for s in segments)
        if corner == "stuff policy":
            assert found.ne(0).float().mean() > 0.95  # but for stuff that is too small
        if corner == "only stuff":
            assert found.ne(0).all()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_by_hand(fusion) -> None:
    # Columns: thing 1 at the left, stuff 0, stuff 2 on the last two columns.
    sem_seg = torch.zeros(3, 2, 8)
    sem_seg[1, :, :2] = sem_seg[0, :, 2:6] = sem_seg[2, :, 6:] = 5.0
    boxes = torch.tensor([[3.0, 0, 5, 2], [1, 0, 5, 2], [3, 0, 6, 2], [0, 0, 8, 2]])
    detections = Detections(
        boxes=boxes,
        scores=torch.tensor([0.9, 0.8, 0.7, 0.4]),
        classes=torch.tensor([1, 1, 1, 1]),
        mask_logits=torch.full((4, 28, 28), 9.0),
    )
    found, segments = fusion(sem_seg, detections, FusionRule([1], 3, stuff_area_threshold=3))
    # The third has 4 of its 6 pixels covered. Of stuff 0 two pixels are left: too few.
    assert found.tolist() == [[0, 2, 2, 1, 1, 0, 3, 3]] * 2
    areas = [(s["category_id"], s.get("instance_id"), s["area"]) for s in segments]
    assert areas == [(1, 0, 4), (1, 1, 4), (2, None, 4)]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_instance_that_is_covered_wholly_is_not_listed(fusion) -> None:
    case = make_case(1, 2, stuff_area_threshold=0, overlap_threshold=1.0)
    case.boxes = torch.tensor([[-2.0, -2, 30, 30], [3, 3, 9, 9]])
    case.scores, case.mask_logits = torch.tensor([0.9, 0.8]), torch.full((2, 28, 28), 9.0)
    found, segments = case.fuse(fusion)
    assert [(s["instance_id"], s["area"]) for s in segments] == [(0, found.numel())]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    for seed in range(6):
        case = make_case(seed, 8).to(dtype)
        expected = case.fuse(heuristic_fusion_detectron2)
        found = case.fuse(heuristic_fusion)
        in_full = case.to(torch.float32).fuse(heuristic_fusion)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[0], in_full[0])


@pytest.mark.parametrize("count", [100, 400])
def test_many_instances(count: int) -> None:
    case = make_case(2, count, size=(90, 100), overlap_threshold=0.9)
    expected = case.fuse(heuristic_fusion_detectron2)
    found = case.fuse(heuristic_fusion)
    assert torch.equal(found[0], expected[0])
    assert found[1] == expected[1]
    assert sum(s["isthing"] for s in found[1]) > 20


@pytest.mark.parametrize("logit", [0.0, 20.0, -20.0])
@pytest.mark.parametrize("edge", [2.0, 2.5, 2.25])
def test_masks_at_the_threshold_are_pasted_as_by_detectron2(logit: float, edge: float) -> None:
    # A probability of exactly 0.5 inside; or of 1.0, which is 0.5 on the edge of the box.
    mask_logits = torch.full((1, 28, 28), logit)
    boxes = torch.tensor([[edge, edge, edge + 9, edge + 7]])
    expected = paste_masks_in_image(mask_logits.sigmoid(), boxes, (16, 20))[0]
    detections = Detections(boxes, torch.ones(1), torch.zeros(1), mask_logits)
    selected = windows.select_instances(detections, FusionRule([0], 1), (16, 20), margin=1)
    ((instance, marks),) = windows.paste_marks(detections, selected)
    found = torch.zeros(16, 20)
    found[instance.where] = marks
    assert torch.equal(found.bool(), expected)


@given(case=dense.cases())
@settings(max_examples=40, deadline=None)
def test_pasted_masks_give_the_same(case: Case) -> None:
    case = clipped(replace(case, options={**case.options, "void_policy": "void"}))
    size = tuple(case.sem_seg.shape[1:])
    masks = paste_masks_in_image(case.mask_logits.sigmoid(), case.boxes, size)
    before = masks.clone()
    found = heuristic_fusion_on_labels(
        case.sem_seg.max(dim=0).indices,
        case.rule,
        scores=case.scores.tolist(),
        classes=case.classes.tolist(),
        mask_of=lambda i: (masks[i], 0, 0),
    )
    expected = case.fuse(heuristic_fusion)
    assert torch.equal(found[0], expected[0])
    assert found[1] == expected[1]
    assert torch.equal(masks, before)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_nothing_is_written_to_the_arguments(fusion) -> None:
    case = make_case(5, 8)
    before = [t.clone() for t in (case.sem_seg, *case.instances.values())]
    case.fuse(fusion)
    after = [case.sem_seg, *case.instances.values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_unknown_void_policy_and_instances_of_stuff_are_refused(fusion) -> None:
    case = make_case(0, 1, void_policy="ignore")
    with pytest.raises(ValueError, match="unknown void_policy 'ignore'; known: "):
        case.fuse(fusion)
    case = make_case(0, 1, void_policy="void", score_threshold=0.0)
    case.classes[0] = case.stuff_ids[0]
    with pytest.raises(ValueError, match="things are"):
        case.fuse(fusion)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_cuda(dtype: torch.dtype, gpu: str) -> None:
    for seed in range(20):
        case = make_case(seed, 20, size=(60, 70)).to(dtype).to(gpu)
        expected = case.fuse(heuristic_fusion_detectron2)
        found = case.fuse(heuristic_fusion)
        assert torch.equal(found[0], expected[0])
        assert found[1] == expected[1]
