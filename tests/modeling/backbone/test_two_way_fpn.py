"""Two-way FPN against its definition, over toy and real backbones, alone in a Mask R-CNN."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.backbone import Backbone
from torch import nn

from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.backbone import TwoWayFPN


class Toy(Backbone):
    """One convolution per stride, named out of order."""

    def __init__(self, strides=(4, 8, 16, 32)):
        super().__init__()
        self.size_divisibility_ = max(strides)
        self.strides = {f"s{stride}": stride for stride in reversed(strides)}
        self.convs = nn.ModuleDict(
            {name: nn.Conv2d(3, stride, 1, stride) for name, stride in self.strides.items()}
        )

    @property
    def size_divisibility(self):
        return self.size_divisibility_

    def output_shape(self):
        return {n: ShapeSpec(channels=s, stride=s) for n, s in self.strides.items()}

    def forward(self, x):
        return {name: conv(x) for name, conv in self.convs.items()}


def twice(x):
    return x.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)


@pytest.mark.parametrize("separable", [True, False])
def test_it_is_the_sum_of_a_way_down_and_a_way_up(separable):
    torch.manual_seed(0)
    net = TwoWayFPN(Toy(), [], 8, norm="BN", separable=separable).eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        found, features = net(x), net.bottom_up(x)
        c = {f"p{i}": features[f"s{2**i}"] for i in (2, 3, 4, 5)}
        down = {n: net.top_down[n](c[n]) for n in c}
        up = {n: net.bottom_to_top[n](c[n]) for n in c}
        for coarse, fine in (("p5", "p4"), ("p4", "p3"), ("p3", "p2")):
            down[fine] = down[fine] + twice(down[coarse])
        for fine, coarse in (("p2", "p3"), ("p3", "p4"), ("p4", "p5")):
            up[coarse] = up[coarse] + up[fine][..., ::2, ::2]
        expected = {n: net.output[n](down[n] + up[n]) for n in c}
    assert list(found) == ["p2", "p3", "p4", "p5"]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert {n: s.stride for n, s in net.output_shape().items()} == {
        "p2": 4, "p3": 8, "p4": 16, "p5": 32
    }  # fmt: skip
    assert all(s.channels == 8 for s in net.output_shape().values())
    assert net.size_divisibility == 32


def test_every_level_depends_on_every_feature_and_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    net = TwoWayFPN(Toy(), ["s4", "s16"], 8, norm="BN")
    found = net(torch.randn(2, 3, 64, 64))
    assert list(found) == ["p2", "p4"]
    for feature in found.values():
        grads = torch.autograd.grad(
            (feature * torch.randn_like(feature)).sum(),
            [net.bottom_up.convs[n].weight for n in ("s4", "s16")],
            retain_graph=True,
        )
        assert all(grad.abs().sum() > 0 for grad in grads)
    sum((f * torch.randn_like(f)).sum() for f in found.values()).backward()
    used = [(n, p) for n, p in net.named_parameters() if "s8." not in n and "s32." not in n]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for _, p in used), used


def test_sizes_that_do_not_divide():
    net = TwoWayFPN(Toy(), [], 8)
    sizes = {n: tuple(f.shape[-2:]) for n, f in net(torch.randn(1, 3, 40, 72)).items()}
    assert sizes == {"p2": (10, 18), "p3": (5, 9), "p4": (3, 5), "p5": (2, 3)}


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "FrozenBN", "GN", ""])
def test_every_norm_keeps_the_activations(norm):
    net = TwoWayFPN(Toy(), [], 32, norm=norm, activation="relu").eval()
    for feature in net(torch.randn(1, 3, 64, 64)).values():
        assert feature.min() == 0 and feature.max() > 0


def tiny_cfg(builder):
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = builder
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.TIMM.NAME = "resnet10t"
    cfg.MODEL.TWO_WAY_FPN.OUT_CHANNELS = 32
    return cfg


@pytest.mark.parametrize("builder", ["resnet_", "timm_", "build_resnet_backbone"])
def test_builders_of_the_registry(builder):
    if builder == "timm_":
        pytest.importorskip("timm")
    name = builder if builder.endswith("_") else ""
    cfg = tiny_cfg(f"build_{name}two_way_fpn_backbone")
    net = build_backbone(cfg)
    assert isinstance(net, TwoWayFPN) and list(net.output_shape()) == ["p2", "p3", "p4", "p5"]
    assert {s.channels for s in net.output_shape().values()} == {32}


def test_wrong_keys_are_errors_that_say_how_to_mend():
    with pytest.raises(ConfigError, match=r"IN_FEATURES 's3'; .*known: s32, s16, s8, s4$"):
        TwoWayFPN(Toy(), ["s3"])
    with pytest.raises(ConfigError, match=r"one feature per stride.*\[4, 4\]"):
        TwoWayFPN(Toy(), ["s4", "s4"])
    cfg = tiny_cfg("build_two_way_fpn_backbone")
    cfg.MODEL.TWO_WAY_FPN.BOTTOM_UP = "build_resnet_backbon"
    with pytest.raises(ConfigError, match="did you mean 'build_resnet_backbone'"):
        build_backbone(cfg)


@pytest.mark.slow
def test_in_a_mask_rcnn_of_detectron2():
    cfg = tiny_cfg("build_resnet_two_way_fpn_backbone")
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256]]
    levels = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = levels
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_MASK_HEAD.NAME = "SeparableMaskHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.RPN.HEAD_NAME = "SeparableRPNHead"
    model = build_model(cfg).eval()
    with torch.no_grad():
        found = model([{"image": torch.zeros(3, 64, 64)}])[0]["instances"]
    assert found.pred_masks.shape == (len(found), 64, 64)
