"""Segmentations from the outputs of a transformer decoder: masks fused with the semantic map."""

from __future__ import annotations

import pytest
import torch

from panoptic_ext.modeling.meta_arch.segmentation import PlacedSegmentation, fused_masks
from panoptic_ext.modeling.transformer_decoder import DecoderOutputs
from panoptic_ext.postprocessing import MaskOutputs

SIZES = {"image_size": (8, 8), "padded_size": (8, 8), "output_size": (8, 8)}


@pytest.mark.parametrize(("queries", "classes"), [(5, 3), (4, 2), (0, 3)])
def test_fused_masks_equal_the_formula_query_by_query(queries, classes):
    generator = torch.Generator().manual_seed(queries)
    mask_cls = torch.randn(queries, classes + 1, generator=generator)
    mask_pred = torch.randn(queries, 4, 6, generator=generator) * 3
    semantic_logits = torch.randn(classes, 4, 6, generator=generator) * 3
    before = mask_pred.clone(), semantic_logits.clone()
    fused = fused_masks(mask_cls, mask_pred, semantic_logits)
    assert fused.shape == mask_pred.shape and fused.dtype == torch.float32
    for query in range(queries):
        own = int(mask_cls[query, :classes].argmax())
        rivals = [semantic_logits[i] for i in range(classes) if i != own]
        margin = semantic_logits[own] - torch.stack(rivals).amax(0)
        mask = mask_pred[query]
        expected = (mask.sigmoid() + margin.sigmoid()) * (mask + margin)
        torch.testing.assert_close(fused[query], expected)
    assert torch.equal(mask_pred, before[0]) and torch.equal(semantic_logits, before[1])


def test_a_single_class_leaves_the_masks_alone():
    mask_pred = torch.randn(2, 4, 6)
    assert torch.equal(fused_masks(torch.randn(2, 2), mask_pred, torch.randn(1, 4, 6)), mask_pred)


def thing_pixels(hadamard_fusion: bool) -> int:
    """Pixels of a thing whose mask hesitates in the left half, where the map is sure of it."""
    masks = torch.full((1, 1, 8, 8), -0.5)
    masks[..., 4:] = 2.0
    semantic_logits = torch.zeros(1, 2, 8, 8)
    semantic_logits[:, 0] = 4.0
    wanted = MaskOutputs(
        panoptic=True,
        thing_ids=frozenset([0]),
        object_mask_threshold=0.5,
        overlap_threshold=0.0,
    )
    outputs = DecoderOutputs(
        torch.tensor([[[9.0, 0.0, 0.0]]]), masks, semantic_logits=semantic_logits
    )
    segmentation = PlacedSegmentation(wanted, 0, hadamard_fusion=hadamard_fusion)
    panoptic, segments = segmentation(outputs, [SIZES])[0]["panoptic_seg"]
    assert [segment["category_id"] for segment in segments] == [0]
    return int((panoptic == segments[0]["id"]).sum())


def test_the_map_completes_a_thing_only_if_they_are_fused():
    assert thing_pixels(hadamard_fusion=False) == 32
    assert thing_pixels(hadamard_fusion=True) == 64
