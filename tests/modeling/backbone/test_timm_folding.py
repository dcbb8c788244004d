"""Frozen norms of timm's models, folded, against timm's own frozen norms."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from panoptic_ext.modeling.backbone.timm_folding import FrozenNormAct, _same_conv2d
from panoptic_ext.modeling.backbone.timm_norm import convert_norms

timm = pytest.importorskip("timm", reason="timm is not installed")


def randomised(name):
    torch.manual_seed(0)
    net = timm.create_model(name, features_only=True)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.1)
    return net


def folded(net):
    return [m for m in net.modules() if isinstance(m, FrozenNormAct) and m.is_folded]


@pytest.mark.parametrize(
    ("name", "size", "number", "norms"),
    [
        ("tf_mobilenetv3_small_minimal_100", (64, 65), 34, 34),  # pads as TensorFlow, even and odd
        ("resnet10t", (32, 32), 14, 14),
        ("resnetv2_18", (32, 32), 8, 16),  # half of its norms have no convolution in front
    ],
)
def test_equals_timms_frozen_norms(name, size, number, norms):
    from timm.layers import freeze_batch_norm_2d

    net = randomised(name)
    plain = freeze_batch_norm_2d(copy.deepcopy(net))
    ours = convert_norms(net, "FrozenBN")
    assert list(plain.state_dict()) == list(ours.state_dict())
    assert len(folded(ours)) == number
    assert sum(isinstance(m, FrozenNormAct) for m in ours.modules()) == norms
    image = torch.randn(2, 3, *size)
    results = []
    for model in (plain.train(), ours.train(), copy.deepcopy(ours).eval()):
        maps = model(image)
        sum(m.square().mean() for m in maps).backward()
        results.append((maps, [p.grad for p in model.parameters()]))
    for maps, gradients in results[1:]:
        torch.testing.assert_close(maps, results[0][0], rtol=1e-3, atol=1e-4)
        for found, expected in zip(gradients, results[0][1], strict=True):
            assert (found - expected).norm() <= 1e-2 * expected.norm() + 1e-6
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(image), results[0][0], rtol=1e-3, atol=1e-4)


def test_weights_of_a_batch_norm_load_and_are_seen():
    net = randomised("resnet10t").eval()
    ours = convert_norms(timm.create_model("resnet10t", features_only=True), "FrozenBN")
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = ours(image)
        assert not ours.load_state_dict(net.state_dict()).missing_keys
        assert not torch.equal(before[0], ours(image)[0])
        torch.testing.assert_close(ours(image), net(image), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("size", [(1, 2), (8, 9), (10, 7)])
def test_padding_as_in_tensorflow(kernel, stride, dilation, size):
    from timm.layers import pad_same

    conv = nn.Conv2d(2, 2, kernel, stride, dilation=dilation)
    image = torch.randn(1, 2, *size)
    padded = pad_same(image, [kernel] * 2, [stride] * 2, [dilation] * 2)
    expected = F.conv2d(padded, conv.weight, conv.bias, stride, 0, dilation)
    found = _same_conv2d(image, conv.weight, conv.bias, conv)
    torch.testing.assert_close(found, expected)
