"""timm's models as backbones: names, strides, layout, and errors that say how to mend."""

import sys

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone

from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.backbone import TimmBackbone


def config(name, **keys):
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.TIMM.NAME = name
    for key, value in keys.items():
        cfg.MODEL.TIMM[key] = value
    return cfg


def check_outputs(backbone, expected):
    """Declared and real shapes agree with `expected` (channels, stride) by name."""
    shapes = backbone.output_shape()
    assert {name: (s.channels, s.stride) for name, s in shapes.items()} == expected
    with torch.no_grad():
        features = backbone.eval()(torch.randn(1, 3, 64, 96))
    assert list(features) == list(expected)
    for name, (channels, stride) in expected.items():
        assert features[name].shape == (1, channels, 64 // stride, 96 // stride)


def test_a_resnet_by_config():
    pytest.importorskip("timm")
    backbone = build_backbone(config("resnet10t"))
    expected = {"res2": (64, 4), "res3": (128, 8), "res4": (256, 16), "res5": (512, 32)}
    check_outputs(backbone, expected)
    assert backbone.size_divisibility == 32


def test_maps_with_channels_last_are_turned():
    """As timm's Swin gives them."""
    pytest.importorskip("timm")
    backbone = TimmBackbone("resnet10t", out_features=["res3", "res5"]).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = backbone(image)
        backbone.net, backbone.channels_last = _ChannelsLast(backbone.net), True
        found = backbone(image)
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x)


def test_a_model_made_for_one_size_takes_others():
    pytest.importorskip("timm")
    backbone = TimmBackbone("vit_tiny_patch16_224", out_features=["res4"])
    check_outputs(backbone, {"res4": (192, 16)})


class _ChannelsLast(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return [m.permute(0, 2, 3, 1) for m in self.net(x)]


def test_features_by_name_or_by_index():
    pytest.importorskip("timm")
    named = build_backbone(config("resnet10t", OUT_FEATURES=["res5", "res3"]))
    assert list(named.output_shape()) == ["res3", "res5"]
    indexed = build_backbone(config("resnet10t", OUT_FEATURES=[], OUT_INDICES=[0, 4]))
    assert {n: s.stride for n, s in indexed.output_shape().items()} == {"res1": 2, "res5": 32}


def test_gradient_reaches_every_parameter():
    pytest.importorskip("timm")
    backbone = build_backbone(config("resnet10t"))
    for parameter in backbone.parameters():
        if not parameter.any():  # the last norm of a block starts at zero and hides the block
            torch.nn.init.ones_(parameter)
    features = backbone(torch.randn(2, 3, 64, 64))
    sum((x * torch.randn_like(x)).sum() for x in features.values()).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("", {}, "MODEL.TIMM.NAME is empty"),
        ("resnet_10t", {}, "did you mean 'resnet10t'"),
        ("resnet10t", {"OUT_FEATURES": ["res6"]}, r"'res6'.*'resnet10t' gives strides \[2, 4"),
        ("mixer_s32_224", {}, r"'res2'.*'mixer_s32_224' gives strides .32, 32, 32."),
        ("resnet10t", {"OUT_INDICES": [7]}, "has feature maps 0 to 4"),
    ],
)
def test_wrong_keys_are_errors_that_say_how_to_mend(name, keys, message):
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=message):
        build_backbone(config(name, **keys))


def test_missing_timm_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"'resnet10t' .*pip install 'panoptic_ext\[timm\]'"):
        TimmBackbone("resnet10t")
