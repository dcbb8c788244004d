"""Linear layers as convolutions equal torch's, values and gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from panoptic_ext.modeling.layers.linear import Linear, linear, use_fast_linears


@pytest.fixture(params=[1, 2])
def threads(request):
    """With one thread the product goes to BLAS, with two to oneDNN."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(5, 12), (70, 12), (2, 90, 12), (0, 12)])
@pytest.mark.parametrize("relu", [False, True])
def test_equals_torch(threads, shape, relu):
    torch.manual_seed(0)
    layer = Linear(12, 7)
    x = torch.randn(shape, requires_grad=True)
    found = linear(x, layer.weight, layer.bias, relu=relu)
    expected = F.linear(x, layer.weight, layer.bias)
    expected = expected.relu() if relu else expected
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(expected)
    leaves = [x, layer.weight, layer.bias]
    grads = (torch.autograd.grad(out, leaves, upstream) for out in (found, expected))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_module_equals_torch_in_columns_and_half(threads):
    torch.manual_seed(0)
    layer, x = Linear(12, 7), torch.randn(12, 300).t()
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), layer(x), rtol=2e-2, atol=2e-2)


def test_linears_of_another_package_keep_names_and_subclasses(threads):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 2, batch_first=True)  # its out_proj is a subclass
    module = nn.Sequential(nn.Linear(12, 12), nn.Sequential(nn.GELU(), nn.Linear(12, 7)), attention)
    x = torch.randn(2, 40, 12)
    names, before = list(module.state_dict()), module[:2](x)
    kind = type(attention.out_proj)
    use_fast_linears(module)
    assert [type(module[0]), type(module[1][1])] == [Linear, Linear]
    assert type(attention.out_proj) is kind and list(module.state_dict()) == names
    torch.testing.assert_close(module[:2](x), before)
