"""SeparableConv2d: the arithmetic, empty batches under every norm, activations by name."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.layers.separable_conv import SeparableConv2d, make_activation, make_conv

NORMS = ["", "BN", "SyncBN", "FrozenBN", "GN"]


def test_it_is_a_convolution_of_each_channel_and_then_one_across_them():
    torch.manual_seed(0)
    layer = SeparableConv2d(3, 5, dilation=(2, 1), norm="", activation="leaky_relu")
    x = torch.randn(2, 3, 7, 9)
    weight = layer.pointwise.weight * layer.depthwise.weight[:, 0]  # (5, 3, 3, 3), as one kernel
    expected = F.conv2d(x, weight, layer.pointwise.bias, padding=(2, 1), dilation=(2, 1))
    torch.testing.assert_close(layer(x), F.leaky_relu(expected, 0.01))


@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_leaves_the_activation(norm):
    torch.manual_seed(0)
    layer = SeparableConv2d(8, 32, norm=norm, activation="relu")
    found = layer(torch.randn(2, 8, 6, 6))
    assert found.min() == 0 and found.max() > 0
    assert (layer.pointwise.bias is None) == bool(norm)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch(norm, training):
    layer = SeparableConv2d(8, 32, norm=norm, activation="leaky_relu").train(training)
    before = {k: v.clone() for k, v in layer.state_dict().items() if "running" in k}
    found = layer(torch.zeros(0, 8, 14, 14))
    assert found.shape == (0, 32, 14, 14)
    found.sum().backward()
    for name, value in before.items():
        assert torch.equal(value, layer.state_dict()[name])


def test_layers_of_equal_width_keep_the_variance_of_their_input():
    torch.manual_seed(0)
    x = torch.randn(4, 64, 16, 16)
    for layer in (
        SeparableConv2d(64, 64, norm="", activation="relu"),
        make_conv(64, 64, 3, norm="", activation="relu"),
    ):
        y = layer(x)
        assert 0.5 < y.square().mean() < 2


def test_activations_by_name():
    x = torch.tensor([-1.0, 2.0])
    found = {n: make_activation(n)(x.clone()).tolist() for n in ("", "relu", "leaky_relu")}
    assert found["relu"] == [0, 2] and found[""] == [-1, 2]
    assert found["leaky_relu"] == pytest.approx([-0.01, 2])
    assert isinstance(make_activation("silu"), nn.SiLU)
    with pytest.raises(ConfigError, match=r"ACTIVATION 'leaky_rely'; did you mean 'leaky_relu'"):
        make_activation("leaky_rely")
