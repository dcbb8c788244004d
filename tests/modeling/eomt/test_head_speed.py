"""The shortcuts of EoMT's head give what the long way gives."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from panoptic_ext.modeling.eomt.head import masks_at_patches
from panoptic_ext.modeling.transformer_decoder.outputs import QueryMasks


def test_masks_at_patches_are_the_resized_masks():
    torch.manual_seed(0)
    masks = QueryMasks(torch.randn(2, 5, 6), torch.randn(2, 6, 12, 20, requires_grad=True))
    expected = F.interpolate(masks.dense(), size=(3, 5), mode="bilinear")
    for given in (masks, masks.dense()):
        found = masks_at_patches(given, (3, 5))
        assert not found.requires_grad
        torch.testing.assert_close(found, expected)
