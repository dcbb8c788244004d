"""Semantic head of Panoptic FPN: its loss of a void batch."""

from __future__ import annotations

import torch
from detectron2.layers import ShapeSpec
from torch import Tensor

from panoptic_ext.modeling.semantic_head import VoidSafeSemSegFPNHead

STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}


def make_head(num_classes: int) -> VoidSafeSemSegFPNHead:
    torch.manual_seed(0)
    return VoidSafeSemSegFPNHead(
        {name: ShapeSpec(channels=8, stride=stride) for name, stride in STRIDES.items()},
        num_classes=num_classes,
        conv_dims=32,
        common_stride=4,
        norm="GN",
        ignore_value=255,
    )


def pyramid(side: int = 64) -> dict[str, Tensor]:
    return {n: torch.randn(2, 8, side // s, side // s) for n, s in STRIDES.items()}


def test_a_void_batch_has_no_loss_and_a_gradient_of_zero() -> None:
    head = make_head(3)
    _, losses = head(pyramid(), torch.full((2, 64, 64), 255))
    losses["loss_sem_seg"].backward()
    assert losses["loss_sem_seg"].item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())
