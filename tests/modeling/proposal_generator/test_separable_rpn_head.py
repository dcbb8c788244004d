"""Separable RPN head: Detectron2's outputs, its own layers."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead, build_rpn_head
from torch import nn

from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.modeling.proposal_generator import SeparableRPNHead

MAPS = [torch.randn(2, 32, 16, 24), torch.randn(2, 32, 8, 12)]


@pytest.mark.parametrize("conv_dims", [(-1,), (-1, 32)])
@pytest.mark.parametrize("norm", ["", "BN", "SyncBN", "FrozenBN", "GN"])
def test_shapes_are_detectron2s_and_every_parameter_gets_a_gradient(conv_dims, norm):
    head = SeparableRPNHead(in_channels=32, num_anchors=3, conv_dims=conv_dims, norm=norm)
    theirs = StandardRPNHead(in_channels=32, num_anchors=3, conv_dims=list(conv_dims))
    outputs, expected = head(MAPS), theirs(MAPS)
    for found, maps in zip(outputs, expected, strict=True):
        assert [f.shape for f in found] == [m.shape for m in maps]
    sum((f * torch.randn_like(f)).sum() for maps in outputs for f in maps).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert sum(isinstance(m, nn.LeakyReLU) for m in head.modules()) == len(conv_dims)


def test_it_is_built_from_a_config():
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.MODEL.RPN.HEAD_NAME = "SeparableRPNHead"
    cfg.MODEL.RPN.NORM = "GN"
    cfg.MODEL.RPN.ACTIVATION = "relu"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64]]
    shapes = [ShapeSpec(channels=32, stride=s) for s in (4, 8)]
    head = build_rpn_head(cfg, shapes)
    assert isinstance(head, SeparableRPNHead)
    assert isinstance(head.conv[0].pointwise.norm, nn.GroupNorm)
    assert isinstance(head.conv[0].pointwise.activation, nn.ReLU)
    assert head.objectness_logits.out_channels == 3
