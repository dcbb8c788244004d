"""Detectron2's FPN over a timm model: keys, layers of the model below it, wrong features."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import FPN, Backbone
from torch import Tensor, nn

from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.engine.optimizer import solver_groups
from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.backbone.backbone_layers import parameter_layers
from panoptic_ext.modeling.backbone.timm_fpn import build_fpn


class Toy(Backbone):
    """A feature map for each stride, with as many channels, named out of order."""

    def __init__(self, strides: tuple[int, ...] = (4, 8, 16, 32)) -> None:
        super().__init__()
        self.strides = {f"s{stride}": stride for stride in reversed(strides)}
        self.convs = nn.ModuleDict({n: nn.Conv2d(3, s, 1, s) for n, s in self.strides.items()})

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {n: ShapeSpec(channels=s, stride=s) for n, s in self.strides.items()}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: conv(x) for name, conv in self.convs.items()}


def tiny_cfg(*options: object) -> CfgNode:
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *options])
    return cfg


def test_levels_are_those_of_detectron2s_fpn() -> None:
    torch.manual_seed(0)
    net = build_fpn(Toy(), [], 8, norm="BN").eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        found, features = net(x), net.bottom_up(x)
        top_down = net.fpn_lateral5(features["s32"])
        for level, name in ((4, "s16"), (3, "s8"), (2, "s4")):
            twice = top_down.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
            top_down = net.get_submodule(f"fpn_lateral{level}")(features[name]) + twice
        torch.testing.assert_close(found["p2"], net.fpn_output2(top_down))
    assert list(found) == ["p2", "p3", "p4", "p5", "p6"]
    torch.testing.assert_close(found["p6"], found["p5"][..., ::2, ::2])


def test_the_last_level_comes_from_the_coarsest_feature() -> None:
    net = build_fpn(Toy(), ["s16", "s8"], 8)
    found = net(torch.randn(1, 3, 64, 64))
    assert {name: level.shape[-1] for name, level in found.items()} == {"p3": 8, "p4": 4, "p5": 2}
    assert {name: shape.stride for name, shape in net.output_shape().items()} == {
        "p3": 8, "p4": 16, "p5": 32
    }  # fmt: skip


@pytest.mark.parametrize(
    ("features", "fuse", "message"),
    [
        (["s3"], "sum", r"IN_FEATURES 's3'; .*known: s32, s16, s8, s4$"),
        (["s4", "s16"], "sum", r"s4, s16 have strides \[4, 16\]; choose with MODEL\.FPN\."),
        ([], "mean", r"MODEL\.FPN\.FUSE_TYPE 'mean'.*sum, avg"),
    ],
)
def test_wrong_keys_are_errors_that_say_how_to_mend(
    features: list[str], fuse: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_fpn(Toy(), features, fuse_type=fuse)


@pytest.mark.parametrize("features", [[], ["res2", "res3", "res4", "res5"]])
def test_a_backbone_of_the_registry(features: list[str]) -> None:
    pytest.importorskip("timm")
    net = build_backbone(tiny_cfg("MODEL.FPN.IN_FEATURES", features, "MODEL.FPN.NORM", "BN"))
    assert isinstance(net, FPN) and list(net.output_shape()) == ["p2", "p3", "p4", "p5", "p6"]
    assert [net.bottom_up.output_shape()[name].channels for name in net.in_features] == [
        24, 40, 112, 320
    ]  # fmt: skip
    assert net.size_divisibility == 32


def test_layer_decay_is_for_the_timm_model_alone() -> None:
    pytest.importorskip("timm")
    model = nn.ModuleDict({"backbone": build_backbone(tiny_cfg())})
    layers = parameter_layers(model, ("backbone.",))
    assert all(name.startswith("backbone.bottom_up.net.") for name in layers)
    assert {layer.num_blocks for layer in layers.values()} == {16}
    solver = tiny_cfg("SOLVER.BASE_LR", 1.0, "SOLVER.LAYER_DECAY", 0.5).SOLVER
    rates = {id(p): g["lr"] for g in solver_groups(solver, model) for p in g["params"]}
    of = {name: rates[id(p)] for name, p in model.named_parameters()}
    assert of["backbone.fpn_output2.weight"] == 1.0
    assert of["backbone.bottom_up.net.conv_stem.weight"] == 0.5**15
