"""Doubling by a product is the transposed convolution."""

import pytest
import torch
from torch import nn

from panoptic_ext.modeling.layers.doubling import DoublingConv2d


@pytest.mark.parametrize("size", [(3, 5), (1, 1)])
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_it_is_the_transposed_convolution(batch, size):
    torch.manual_seed(0)
    layer = DoublingConv2d(6, 4).double()
    plain = nn.ConvTranspose2d(6, 4, kernel_size=2, stride=2).double()
    plain.load_state_dict(layer.state_dict())
    tokens = torch.randn(batch, 4 + size[0] * size[1], 6, dtype=torch.float64)
    results = []
    for net in (layer, plain):
        leaf = tokens.clone().requires_grad_()
        out = net(leaf[:, 4:].unflatten(1, size).permute(0, 3, 1, 2))
        assert out.shape == (batch, 4, 2 * size[0], 2 * size[1])
        leaves = [leaf, *net.parameters()]
        results.append([out, *torch.autograd.grad((out.cos() * out).sum(), leaves)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
