"""Counting without a wait: the numbers of bincount."""

import torch

from panoptic_ext.fusion import Detections, FusionRule
from panoptic_ext.fusion.hadamard import hadamard_fusion
from panoptic_ext.fusion.heuristic import heuristic_fusion
from panoptic_ext.fusion.upsnet import upsnet_fusion
from panoptic_ext.modeling.semantic_head.hard_pixel_loss import hard_pixel_cross_entropy
from panoptic_ext.postprocessing.counts import count_values
from tests.pretended_cuda import PretendedCuda


def on_host(values):
    return values.as_subclass(torch.Tensor)


def test_counts_and_sums_are_those_of_bincount_without_a_wait():
    values = torch.randint(0, 7, (1001,)).int()
    weights = torch.rand(1001, dtype=torch.float64)
    with PretendedCuda() as device:
        counts = count_values(values.to("cuda"), 9)
        sums = count_values(values.to("cuda"), 9, weights.to("cuda"))
    assert set(device.waits) == {wait for wait in device.waits if "copy of memory" in wait[0]}
    assert torch.equal(on_host(counts), torch.bincount(values, minlength=9))
    assert counts.dtype == torch.int64 and torch.equal(count_values(values, 9), on_host(counts))
    torch.testing.assert_close(on_host(sums), torch.bincount(values, weights, minlength=9))
    assert count_values(values[:0], 3).tolist() == [0, 0, 0]


def test_the_worst_pixels_by_rank_are_those_by_their_number():
    logits = torch.randn(3, 4, 6, 7)
    targets = torch.randint(0, 4, (3, 6, 7))
    targets[0, :3], targets[2] = 255, 255
    options = {"fraction": 0.3, "ignore_value": 255}
    expected = hard_pixel_cross_entropy(logits, targets, **options)
    logits_there, targets_there = logits.clone().requires_grad_(), targets.clone()
    with PretendedCuda() as device:
        moved = logits_there.to("cuda"), targets_there.to("cuda")
        device.waits.clear()
        loss = hard_pixel_cross_entropy(*moved, **options)
        assert not device.waits, device.report()
        loss.backward()
    torch.testing.assert_close(on_host(loss), expected)
    there = logits.clone().requires_grad_()
    hard_pixel_cross_entropy(there, targets, **options).backward()
    torch.testing.assert_close(logits_there.grad, there.grad)


def test_fusions_wait_two_or_three_times_an_image_and_give_the_map_of_a_cpu():
    torch.manual_seed(0)
    corner = 40 * torch.rand(5, 2)
    detections = Detections(
        boxes=torch.cat((corner, corner + 30), 1),
        scores=torch.rand(5),
        classes=torch.tensor([1, 3, 1, 3, 1]),
        mask_logits=torch.randn(5, 14, 14) + 1,
    )
    rule = FusionRule([1, 3], 6, score_threshold=0.1, overlap_threshold=0.4)
    sem_seg = torch.randn(6, 64, 80)
    for fuse in (hadamard_fusion, heuristic_fusion, upsnet_fusion):
        expected = fuse(sem_seg, detections, rule)
        with PretendedCuda() as device:
            there = Detections(*(value.to("cuda") for value in vars(detections).values()))
            logits = sem_seg.to("cuda")
            device.waits.clear()
            ids, segments = fuse(logits, there, rule)
        assert sum(device.waits.values()) <= 2 + (fuse is upsnet_fusion), device.report()
        assert (on_host(ids) == expected[0]).float().mean() > 0.99
        assert len(segments) == len(expected[1])
