"""The Hadamard fusion equals the paper's steps on dense stacks; each known trap has its test."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.fusion import hadamard_fusion, windows
from panoptic_ext.fusion.hadamard import hadamard_product
from panoptic_ext.postprocessing import best_class
from tests.fusion import dense_fusion as dense
from tests.fusion.dense_fusion import Case, make_case
from tests.gpu_waits import waits_of

hadamard_cases = dense.cases(instance_logit_scale=st.sampled_from([1.0, 4.0]))
scene = partial(dense.scene, instance_logit_scale=1.0)


def fuse(case: Case):
    return case.fuse(hadamard_fusion)


@given(case=hadamard_cases)
@settings(max_examples=150, deadline=None)
def test_equals_the_dense_steps(case: Case) -> None:
    dense.check(fuse(case), dense.hadamard(case))


def test_the_check_forgives_rounding_and_nothing_else() -> None:
    # Two columns of stuff and one of an instance; the last pixel may be either's.
    case = scene([[[5.0] * 3] * 2, [[8.0] * 3] * 2], [((2, 0, 3, 2), 1, 8.0)])
    expected = dense.hadamard(case)
    expected.panoptic_seg[:, :2] = 2  # where the thing has no instance
    expected.segments.append({"id": 2, "isthing": False, "category_id": 0, "area": 4})
    expected.margin = torch.ones(2, 3)
    expected.margin[1, 2] = 0
    found, segments = expected.panoptic_seg.clone(), [dict(s) for s in expected.segments]
    found[1, 2] = 2
    segments[0]["area"], segments[1]["area"] = 1, 5
    dense.check((found, segments), expected)
    for index, key, value in ((0, "score", 0.3), (0, "category_id", 0), (0, "instance_id", 1)):
        wrong = [dict(s) for s in segments]
        wrong[index][key] = value
        with pytest.raises(AssertionError):
            dense.check((found, wrong), expected)
    alone = [{"id": 1, "isthing": False, "category_id": 0, "area": 6}]
    with pytest.raises(AssertionError):  # the instance's other pixel is sure
        dense.check((torch.ones(2, 3, dtype=torch.int32), alone), expected)
    expected.margin[0, 2] = 0
    dense.check((torch.ones(2, 3, dtype=torch.int32), alone), expected)


@given(case=hadamard_cases)
@settings(max_examples=40, deadline=None)
def test_small_strips_and_groups_and_a_device_give_the_same(case: Case) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(best_class, "_CPU_STRIP_VALUES", 40)
        patch.setattr(windows, "_STRIP_VALUES", 40)
        patch.setattr(windows, "_GROUP_LENGTH", 30)
        dense.check(fuse(case), dense.hadamard(case))
        patch.setattr(windows, "_runs_async", lambda tensor: True)
        dense.check(fuse(case), dense.hadamard(case))


@pytest.mark.parametrize("count", [100, 400])
def test_many_instances(count: int) -> None:
    case = make_case(3, count, size=(40, 48), overlap_threshold=0.9, instance_logit_scale=1.0)
    expected = dense.hadamard(case)
    assert sum(s["isthing"] for s in expected.segments) > 12
    dense.check(fuse(case), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_fused_in_float32(dtype: torch.dtype) -> None:
    for seed in range(8):
        case = make_case(seed, 6, instance_logit_scale=1.0).to(dtype)
        dense.check(fuse(case), dense.hadamard(case))


def test_autocast_changes_nothing() -> None:
    case = make_case(1, 6, instance_logit_scale=1.0)
    expected = fuse(case)
    with torch.autocast("cpu", torch.bfloat16):
        found = fuse(case)
    assert torch.equal(found[0], expected[0])
    assert found[1] == expected[1]


def test_nothing_is_written_to_the_arguments() -> None:
    case = make_case(5, 8, instance_logit_scale=4.0)
    before = [t.clone() for t in (case.sem_seg, *case.instances.values())]
    fuse(case)
    after = [case.sem_seg, *case.instances.values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_fl_values_of_the_paper() -> None:
    def product(a: float, b: float) -> float:
        return hadamard_product(torch.tensor(a), torch.tensor(b)).item()

    assert product(8, 8) == pytest.approx(32, abs=0.02)
    assert product(8, 0) == pytest.approx(12, abs=0.005)
    assert product(8, -8) == pytest.approx(0, abs=1e-6)
    line = torch.linspace(-10, 10, 20001)
    assert hadamard_product(line, line).min().item() == pytest.approx(-1.11, abs=0.005)


def test_two_instances_by_hand() -> None:
    # Stuff has 5 everywhere; things 8, 0 and -8 by column, their masks 8.
    columns = [8.0, 0.0, -8.0, 8.0]
    case = scene(
        [[[5.0] * 4] * 2, [columns] * 2], [((0, 0, 3, 1), 1, 8.0), ((3, 0, 4, 2), 1, -8.0)]
    )
    panoptic_seg, segments = fuse(case)
    # 32 and 12 beat 5, 0 does not; the second instance's mask is empty, and the semantic head has
    # a thing at columns 0 and 3, which becomes void where there is no instance.
    assert panoptic_seg.tolist() == [[1, 1, 2, 0], [0, 2, 2, 0]]
    assert [(s["id"], s["category_id"], s["area"]) for s in segments] == [(1, 1, 2), (2, 0, 3)]


def test_trap_instance_logits_are_not_scaled_by_four() -> None:
    case = scene([[[5.0]], [[-8.0]]], [((0, 0, 1, 1), 1, 8.0)])
    assert fuse(case)[1][0]["isthing"] is False  # FL is 0
    case.options["instance_logit_scale"] = 4.0
    assert fuse(case)[1][0]["isthing"] is True  # FL is 24


def test_trap_far_pixels_do_not_join_an_instance() -> None:
    # A zero outside the box would beat stuff logits that are all negative.
    case = scene([[[-2.0] * 6] * 4, [[-9.0] * 6] * 4], [((0, 0, 2, 2), 1, 12.0)])
    panoptic_seg, segments = fuse(case)
    assert (panoptic_seg == 1).nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert [s["area"] for s in segments] == [4, 20]


def test_trap_an_instance_that_covers_everything_is_not_void() -> None:
    case = scene([[[-5.0] * 3] * 3, [[5.0] * 3] * 3], [((0, 0, 3, 3), 1, 5.0)])
    panoptic_seg, segments = fuse(case)
    assert panoptic_seg.eq(1).all()
    assert [(s["id"], s["isthing"], s["area"]) for s in segments] == [(1, True, 9)]


def test_trap_an_empty_mask_is_dropped() -> None:
    # FL would be above stuff's logit, and the overlap test 0 / 0.
    case = scene([[[-50.0] * 3] * 3, [[-60.0] * 3] * 3], [((0, 0, 3, 3), 1, -1.0)])
    panoptic_seg, segments = fuse(case)
    assert [s["isthing"] for s in segments] == [False]
    assert panoptic_seg.eq(1).all()


def test_trap_the_formula_is_for_logits() -> None:
    # With logits FL is 4 * sigmoid(2) * 2 = 7.05 > 6; with probabilities at most 2.7.
    case = scene([[[6.0]], [[2.0]]], [((0, 0, 1, 1), 1, 2.0)])
    assert fuse(case)[1][0]["isthing"] is True
    squashed = replace(case, mask_logits=case.mask_logits.sigmoid())
    assert fuse(squashed)[1][0]["isthing"] is False


def test_trap_classes_are_contiguous_ids_not_an_offset() -> None:
    # Things 0 and 2 between stuff 1 and 3: each instance reads the channel of its own class.
    sem_seg = torch.full((4, 1, 4), -9.0)
    sem_seg[1] = 3.0
    sem_seg[0, 0, 0] = sem_seg[2, 0, 1] = 9.0
    boxes = [((x, 0, x + 1, 1), label, 2.0) for x, label in enumerate([0, 2, 0, 2])]
    panoptic_seg, segments = fuse(scene(sem_seg.tolist(), boxes, things=(0, 2)))
    assert panoptic_seg.tolist() == [[1, 2, 3, 3]]
    assert [s["category_id"] for s in segments] == [0, 2, 1]
    with pytest.raises(ValueError, match="class 3; things are"):
        fuse(scene(sem_seg.tolist(), [((0, 0, 1, 1), 3, 2.0)], things=(0, 2)))


@pytest.mark.parametrize(("void_policy", "expected"), [("void", [[0, 1]]), ("stuff", [[1, 1]])])
def test_trap_a_thing_without_an_instance_is_void_by_policy(void_policy, expected) -> None:
    case = scene([[[1.0, 2.0]], [[3.0, 0.0]]], void_policy=void_policy)
    assert fuse(case)[0].tolist() == expected


def test_trap_pasted_masks_keep_negative_logits() -> None:
    case = scene([[[0.0] * 4] * 4] * 2, [((1, 1, 3, 3), 1, -3.0)])
    selected = windows.select_instances(case.detections, case.rule, (4, 4))
    ((instance, logits),) = windows.paste_logits(case.detections, selected)
    assert instance.where == (slice(1, 3), slice(1, 3))
    assert torch.allclose(logits, torch.full((2, 2), -3.0))


@pytest.mark.parametrize("void_policy", ["void", "stuff"])
@pytest.mark.parametrize(
    ("box", "score"),
    [
        (None, 0.9),
        ((0, 0, 2, 2), 0.4),
        ((1, 1, 1, 3), 0.9),
        ((9, 9, 12, 12), 0.9),
        ((-8, -8, -1, -1), 0.9),
        ((float("nan"), 0, 2, 2), 0.9),
        ((0, 0, float("inf"), 2), 0.9),
    ],
)
def test_without_a_usable_instance_only_stuff_is_left(box, score, void_policy) -> None:
    case = make_case(0, 0, size=(5, 6), instance_logit_scale=1.0, void_policy=void_policy)
    if box is not None:
        case.boxes, case.scores = torch.tensor([box], dtype=torch.float32), torch.tensor([score])
        case.classes = torch.tensor(case.thing_ids[:1])
        case.mask_logits = torch.full((1, 28, 28), 9.0)
    panoptic_seg, segments = fuse(case)
    expected = dense.hadamard(replace(case, **make_case(0, 0).instances))
    assert torch.equal(panoptic_seg, expected.panoptic_seg)
    assert segments == expected.segments


def test_a_box_beyond_the_image_keeps_its_scale() -> None:
    # Left half of the mask outside: the image sees its right half, which is positive.
    case = scene([[[0.0] * 4] * 2, [[0.0] * 4] * 2], [((-4, 0, 4, 2), 1, -5.0)])
    case.mask_logits = case.mask_logits.clone()
    case.mask_logits[:, :, 14:] = 5.0
    panoptic_seg, segments = fuse(case)
    assert panoptic_seg.eq(1).all()
    assert segments[0]["isthing"] is True


def test_only_things_and_all_void() -> None:
    case = scene([[[3.0] * 3] * 3], [((0, 0, 1, 3), 0, 5.0)], things=(0,))
    assert fuse(case)[0].tolist() == [[1, 0, 0]] * 3
    nothing = scene([[[3.0] * 3] * 3], things=(0,), void_policy="stuff")
    panoptic_seg, segments = fuse(nothing)
    assert not panoptic_seg.any()
    assert segments == []


def test_no_thing_class() -> None:
    case = scene([[[3.0, 0.0]], [[0.0, 3.0]]], things=())
    assert fuse(case)[0].tolist() == [[1, 2]]


def test_small_stuff_is_void_and_its_threshold_is_a_least_area() -> None:
    sem_seg = [[[1.0] * 3 + [0.0] * 2], [[0.0] * 5], [[0.0] * 3 + [1.0] * 2]]
    assert fuse(scene(sem_seg, stuff_area_threshold=3))[0].tolist() == [[1, 1, 1, 0, 0]]
    assert fuse(scene(sem_seg, stuff_area_threshold=2))[0].tolist() == [[1, 1, 1, 2, 2]]


def test_overlapped_instances_are_dropped_and_do_not_cover_others() -> None:
    sem_seg = [[[-5.0] * 6], [[5.0] * 6]]
    first, dropped, third = (0, 0, 3, 1), (1, 0, 4, 1), (3, 0, 6, 1)
    case = scene(sem_seg, [(box, 1, 5.0) for box in (first, dropped, third)])
    panoptic_seg, segments = fuse(case)
    assert [s["instance_id"] for s in segments] == [0, 2]
    assert panoptic_seg.tolist() == [[1, 1, 1, 2, 2, 2]]


def test_an_unknown_void_policy_is_refused() -> None:
    case = make_case(0, 1, instance_logit_scale=1.0, void_policy="ignore")
    with pytest.raises(ValueError, match="unknown void_policy 'ignore'; known: "):
        fuse(case)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_cuda(dtype: torch.dtype, gpu: str) -> None:
    for seed in range(30):
        case = make_case(seed, 30, size=(60, 70), instance_logit_scale=1.0).to(dtype)
        dense.check(fuse(case.to(gpu)), dense.hadamard(case))


@pytest.mark.gpu
def test_cuda_waits_for_the_host_no_more_often_for_more_instances(gpu: str) -> None:
    waits = []
    for count in (5, 50):
        case = make_case(0, count, size=(60, 70), instance_logit_scale=1.0).to(gpu)
        fuse(case)
        waits.append(waits_of(lambda case=case: fuse(case), gpu)[1])
    assert waits[0] == waits[1]
