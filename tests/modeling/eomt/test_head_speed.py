"""The shortcuts of EoMT's head give what the long way gives."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from panoptic_ext.modeling.eomt.head import ScaleBlock, masks_at_patches
from panoptic_ext.modeling.transformer_decoder.outputs import QueryMasks


@pytest.mark.parametrize("size", [(3, 5), (1, 1)])
@pytest.mark.parametrize("batch", [1, 2])
def test_doubling_is_the_transposed_convolution(batch, size):
    torch.manual_seed(0)
    block = ScaleBlock(6).double()
    tokens = torch.randn(batch, 4 + size[0] * size[1], 6, dtype=torch.float64)
    gradients = []
    for doubled in (block.conv1, block._doubled_by_product):
        leaf = tokens.clone().requires_grad_()
        patches = leaf[:, 4:].unflatten(1, size).permute(0, 3, 1, 2)
        out = doubled(patches)
        assert out.shape == (batch, 6, 2 * size[0], 2 * size[1])
        leaves = [leaf, block.conv1.weight, block.conv1.bias]
        gradients.append([out, *torch.autograd.grad((out.cos() * out).sum(), leaves)])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


def test_masks_at_patches_are_the_resized_masks():
    torch.manual_seed(0)
    masks = QueryMasks(torch.randn(2, 5, 6), torch.randn(2, 6, 12, 20, requires_grad=True))
    expected = F.interpolate(masks.dense(), size=(3, 5), mode="bilinear")
    for given in (masks, masks.dense()):
        found = masks_at_patches(given, (3, 5))
        assert not found.requires_grad
        torch.testing.assert_close(found, expected)
