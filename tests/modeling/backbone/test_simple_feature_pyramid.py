"""Simple feature pyramid against its definition, for every stride that a ViT can have."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone
from torch import nn
from torch.nn import functional as F

from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.backbone.simple_feature_pyramid import SimpleFeaturePyramid

MASK2FORMER = ["res2", "res3", "res4", "res5"]
FPN = ["p2", "p3", "p4", "p5", "p6"]


class OneMap(Backbone):
    """Patches of `stride` pixels, embedded."""

    def __init__(self, stride=16, channels=16):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, stride, stride)
        self.shape = ShapeSpec(channels=channels, stride=stride)

    @property
    def size_divisibility(self):
        return self.shape.stride

    def output_shape(self):
        return {"last_feat": self.shape}

    def forward(self, x):
        return {"last_feat": self.conv(x)}


def channel_norm(x, norm):
    mean = x.mean(1, keepdim=True)
    x = (x - mean) / ((x - mean).square().mean(1, keepdim=True) + 1e-6).sqrt()
    return x * norm.weight[:, None, None] + norm.bias[:, None, None]


def doubled(x, deconv):
    """Every pixel becomes a square of four, each with a matrix of its own."""
    squares = torch.einsum("bihw,ioyx->bohywx", x, deconv.weight)
    batch, channels, height, _, width, _ = squares.shape
    squares = squares.reshape(batch, channels, 2 * height, 2 * width)
    return squares + deconv.bias[:, None, None]


def two_convs(x, first, second):
    x = channel_norm(torch.einsum("bihw,oi->bohw", x, first.weight[..., 0, 0]), first.norm)
    return channel_norm(F.conv2d(x, second.weight, padding=1), second.norm)


def test_every_level_is_what_the_paper_says():
    torch.manual_seed(0)
    net = SimpleFeaturePyramid(OneMap(), FPN, 8)
    for parameter in net.parameters():  # norms, too, so that none of them is the identity
        nn.init.normal_(parameter, std=0.5)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        found = net(images)
        x = net.bottom_up(images)["last_feat"]
        fine, double, same, half = (net.get_submodule(f"simfp_{i}") for i in (2, 3, 4, 5))
        four_times = F.gelu(channel_norm(doubled(x, fine[0]), fine[1]))
        pooled = x.reshape(2, 16, 2, 2, 3, 2).amax((3, 5))
        expected = {
            "p2": two_convs(doubled(four_times, fine[3]), *fine[4:]),
            "p3": two_convs(doubled(x, double[0]), *double[1:]),
            "p4": two_convs(x, *same),
            "p5": two_convs(pooled, *half[1:]),
        }
        expected["p6"] = expected["p5"][..., ::2, ::2]
    assert list(found) == FPN
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_strides_and_channels_are_as_declared_for_every_patch(stride):
    net = SimpleFeaturePyramid(OneMap(stride), MASK2FORMER, 8).eval()
    found = net(torch.randn(1, 3, 64, 96))
    assert list(found) == list(net.output_shape()) == MASK2FORMER
    for name, shape in net.output_shape().items():
        assert shape.stride == 2 ** int(name[-1]) and shape.channels == 8
        assert found[name].shape == (1, 8, 64 // shape.stride, 96 // shape.stride)
    assert net.size_divisibility == 32


def test_levels_are_sorted_and_some_may_be_left_out():
    net = SimpleFeaturePyramid(OneMap(), ["p6", "p3", "p5", "p7"], 8)
    found = net(torch.randn(1, 3, 128, 128))
    assert {name: x.shape[-1] for name, x in found.items()} == {"p3": 16, "p5": 4, "p6": 2, "p7": 1}
    assert not hasattr(net, "simfp_2") and not hasattr(net, "simfp_4")
    assert SimpleFeaturePyramid(OneMap(), ["res4"], 8).size_divisibility == 16


@pytest.mark.parametrize("norm", ["LN", "GN", "BN", "SyncBN", "FrozenBN", ""])
def test_every_norm_and_a_gradient_for_every_parameter(norm):
    torch.manual_seed(0)
    net = SimpleFeaturePyramid(OneMap(channels=128), FPN, 32, norm=norm)
    biases = [name for name, _ in net.simfp_4.named_parameters() if name.endswith("0.bias")]
    assert bool(biases) == (norm == "")
    if norm == "SyncBN":  # its forward in training needs CUDA
        net.eval()
    found = net(torch.randn(2, 3, 64, 64))
    sum((x * torch.randn_like(x)).sum() for x in found.values()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_one_image_is_the_same_as_in_a_batch():
    net = SimpleFeaturePyramid(OneMap(), MASK2FORMER, 8).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        both, alone = net(images), net(images[1:])
    for name, x in alone.items():
        torch.testing.assert_close(both[name][1:], x)


@pytest.mark.parametrize(
    ("stride", "names", "norm", "message"),
    [
        (14, MASK2FORMER, "LN", "patches of 14 pixels; MODEL.VIT.PATCH_SIZE 16 resamples"),
        (16, ["c2"], "LN", "has 'c2'; a level is called p<i> or res<i>"),
        (16, [], "LN", "has no level"),
        (16, ["p4", "p6"], "LN", r"has p6 without level 5; take \['res2'"),
        (16, FPN, "layernorm", "unknown MODEL.SIMPLE_FEATURE_PYRAMID.NORM 'layernorm'"),
    ],
)
def test_bad_keys_are_one_error(stride, names, norm, message):
    with pytest.raises(ConfigError, match=message):
        SimpleFeaturePyramid(OneMap(stride), names, 8, norm=norm)
