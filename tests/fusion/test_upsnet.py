"""UPSNet's fusion equals the argmax over its dense stack."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.fusion import upsnet_fusion, windows
from panoptic_ext.postprocessing import best_class
from tests.fusion import dense_fusion as dense
from tests.fusion.dense_fusion import Case, make_case

upsnet_cases = dense.cases(nms_threshold=st.sampled_from([0.1, 0.5, 1.0]))
scene = partial(dense.scene, nms_threshold=0.5)


def fuse(case: Case):
    return case.fuse(upsnet_fusion)


@given(case=upsnet_cases)
@settings(max_examples=150, deadline=None)
def test_equals_the_dense_stack(case: Case) -> None:
    dense.check(fuse(case), dense.upsnet(case))


@given(case=upsnet_cases)
@settings(max_examples=40, deadline=None)
def test_small_strips_and_groups_and_a_device_give_the_same(case: Case) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(best_class, "_CPU_STRIP_VALUES", 40)
        patch.setattr(windows, "_STRIP_VALUES", 40)
        patch.setattr(windows, "_GROUP_LENGTH", 30)
        dense.check(fuse(case), dense.upsnet(case))
        patch.setattr(windows, "_runs_async", lambda tensor: True)
        dense.check(fuse(case), dense.upsnet(case))


@pytest.mark.parametrize("count", [100, 400])
def test_many_instances(count: int) -> None:
    case = make_case(3, count, size=(40, 48), overlap_threshold=0.9, nms_threshold=0.9)
    expected = dense.upsnet(case)
    assert sum(s["isthing"] for s in expected.segments) > 12
    dense.check(fuse(case), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_fused_in_float32(dtype: torch.dtype) -> None:
    for seed in range(8):
        case = make_case(seed, 6, nms_threshold=0.5).to(dtype)
        dense.check(fuse(case), dense.upsnet(case))


def test_by_hand() -> None:
    # One row: stuff 2 everywhere; the thing 3, its instance on the first two pixels, mask 1.
    case = scene([[[2.0] * 4], [[3.0, 3.0, 3.0, 1.0]]], [((0, 0, 2, 1), 1, 1.0)])
    panoptic_seg, segments = fuse(case)
    # Inside: stuff 2, instance 4, unknown 3 - 3. Outside: unknown 3 beats stuff, then stuff 2
    # beats unknown 1.
    assert panoptic_seg.tolist() == [[1, 1, 0, 2]]
    assert [(s["isthing"], s["category_id"], s["area"]) for s in segments] == [
        (True, 1, 2),
        (False, 0, 1),
    ]
    case.options["void_policy"] = "stuff"
    assert fuse(case)[0].tolist() == [[1, 1, 2, 2]]


def test_the_zeros_of_other_instances_count_where_not_all_boxes_meet() -> None:
    # The thing's logit is -4, so that max X_i is 0 as soon as one box leaves the pixel out: the
    # unknown class then has -4, else 0, against -3 of stuff.
    sem_seg = [[[-3.0] * 4], [[-4.0] * 4]]
    alone = scene(sem_seg, [((0, 0, 4, 1), 1, 0.5)])
    assert fuse(alone)[0].tolist() == [[0, 0, 0, 0]]
    beside = scene(sem_seg, [((0, 0, 3, 1), 1, 0.5), ((3, 0, 4, 1), 1, 0.5)])
    assert fuse(beside)[0].tolist() == [[1, 1, 1, 1]]
    assert fuse(beside)[1][0]["isthing"] is False


def test_far_pixels_do_not_join_an_instance() -> None:
    case = scene([[[-2.0] * 6] * 4, [[-9.0] * 6] * 4], [((0, 0, 2, 2), 1, 12.0)])
    panoptic_seg, _ = fuse(case)
    assert (panoptic_seg == 1).nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_pruning_is_by_class_after_suppression_over_all_classes() -> None:
    sem_seg = [[[-9.0] * 10], [[5.0] * 10], [[5.0] * 10]]
    long, same, other = (0, 0, 6, 1), (4, 0, 9, 1), (4, 0, 10, 1)
    kept = scene(
        sem_seg,
        [(long, 1, 5.0), (same, 1, 4.0), (other, 2, 3.0)],
        things=(1, 2),
        overlap_threshold=0.3,
    )
    # The second has 2 of 5 pixels covered by its class; the third 2 of 6, but by another class.
    kept.options["nms_threshold"] = 0.9
    assert [s["instance_id"] for s in fuse(kept)[1]] == [0, 2]
    # With 0.5 the third would go if the second, dropped later, suppresses it: IoU 5 / 6.
    kept.options["nms_threshold"] = 0.5
    assert [s["instance_id"] for s in fuse(kept)[1]] == [0]


@pytest.mark.parametrize("void_policy", ["void", "stuff"])
@pytest.mark.parametrize(
    "corner",
    [
        {"count": 0},
        {"count": 5, "score_threshold": 1.0, "best_score": 0.9},
        {"count": 5, "stuff": 0},
        {"count": 0, "stuff": 0},
        {"count": 0, "things": 0},
        {"count": 5, "stuff_area_threshold": 10**6},
    ],
)
def test_corner_cases(corner: dict[str, Any], void_policy: str) -> None:
    for seed in range(5):
        case = make_case(seed, **corner, nms_threshold=0.5, void_policy=void_policy)
        dense.check(fuse(case), dense.upsnet(case))
        nothing = replace(case, boxes=case.boxes - 1000)
        expected = fuse(replace(case, **make_case(0, 0).instances))
        assert torch.equal(fuse(nothing)[0], expected[0])


def test_nothing_is_written_to_the_arguments() -> None:
    case = make_case(5, 8, nms_threshold=0.9)
    before = [t.clone() for t in (case.sem_seg, *case.instances.values())]
    fuse(case)
    after = [case.sem_seg, *case.instances.values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_an_unknown_void_policy_is_refused() -> None:
    case = make_case(0, 1, nms_threshold=0.5, void_policy="ignore")
    with pytest.raises(ValueError, match="unknown void_policy 'ignore'; known: "):
        fuse(case)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_cuda(dtype: torch.dtype, gpu: str) -> None:
    for seed in range(20):
        case = make_case(seed, 20, size=(60, 70), nms_threshold=0.5).to(dtype)
        dense.check(fuse(case.to(gpu)), dense.upsnet(case))
