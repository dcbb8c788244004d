"""Outputs of a transformer decoder -> the segmentations that a Mask2Former returns.

Shapes: B images, Q queries, K classes, h x w logits. Classes are the head's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from panoptic_ext.config.mask_former import mask_former_task, stuff_area_threshold
from panoptic_ext.fusion.hadamard import hadamard_product
from panoptic_ext.modeling.transformer_decoder import DecoderOutputs, transformer_decoder_class
from panoptic_ext.postprocessing import (
    MaskOutputs,
    Sizes,
    mask_inference,
    panoptic_with_stuff,
    semantic_scores,
    with_extents,
)

__all__ = [
    "MaskSegmentation",
    "PlacedSegmentation",
    "build_segmentation",
    "fused_masks",
    "wanted_outputs",
]


class MaskSegmentation:
    """Segments, semantic scores and instances from the queries, as published.

    Args:
        wanted: which outputs are returned, and their thresholds.
    """

    def __init__(self, wanted: MaskOutputs) -> None:
        self.wanted = wanted

    def __call__(self, outputs: DecoderOutputs, sizes: Sequence[Sizes]) -> list[dict[str, Any]]:
        """
        Args:
            outputs: of a batch.
            sizes: of each image.

        Returns:
            As `mask_inference`; segments have `bbox`, too, see `with_extents`.
        """
        results = self._segment(outputs, sizes)
        for result in results:
            if "panoptic_seg" in result:
                result["panoptic_seg"] = with_extents(*result["panoptic_seg"])
        return results

    def _segment(self, outputs: DecoderOutputs, sizes: Sequence[Sizes]) -> list[dict[str, Any]]:
        return mask_inference(outputs.pred_logits, outputs.pred_masks, sizes, self.wanted)


class PlacedSegmentation(MaskSegmentation):
    """Things from placed queries, stuff and semantic scores from the semantic map.

    Args:
        wanted: which outputs are returned, and their thresholds.
        stuff_area_threshold: see `panoptic_with_stuff`.
        hadamard_fusion: whether things of the panoptic map have `fused_masks`.
    """

    def __init__(
        self, wanted: MaskOutputs, stuff_area_threshold: float, hadamard_fusion: bool = False
    ) -> None:
        super().__init__(wanted)
        self.stuff_area_threshold = stuff_area_threshold
        self.hadamard_fusion = hadamard_fusion

    def _segment(self, outputs: DecoderOutputs, sizes: Sequence[Sizes]) -> list[dict[str, Any]]:
        masks, semantic_logits = outputs.dense_masks(), outputs.semantic_logits
        if semantic_logits is None:
            raise TypeError(
                "the transformer decoder sets places_queries, but its outputs have no "
                "`semantic_logits`; return them, see DecoderOutputs"
            )
        instances_alone = replace(self.wanted, panoptic=False, semantic=False)
        results = mask_inference(outputs.pred_logits, masks, sizes, instances_alone)
        for image, result in enumerate(results):
            if self.wanted.semantic:
                result["sem_seg"] = semantic_scores(semantic_logits[image], **sizes[image])
            if self.wanted.panoptic:
                of_image = outputs.pred_logits[image], masks[image], semantic_logits[image]
                if self.hadamard_fusion:
                    of_image = of_image[0], fused_masks(*of_image), of_image[2]
                result["panoptic_seg"] = panoptic_with_stuff(
                    *of_image,
                    **sizes[image],
                    thing_ids=self.wanted.thing_ids,
                    object_mask_threshold=self.wanted.object_mask_threshold,
                    overlap_threshold=self.wanted.overlap_threshold,
                    stuff_area_threshold=self.stuff_area_threshold,
                )
        return results


def fused_masks(mask_cls: Tensor, mask_pred: Tensor, semantic_logits: Tensor) -> Tensor:
    """Fuse the mask of each query with the semantic map, see `hadamard_product`.

    MLA is the query's mask. MLB is the logit of the query's likeliest class less the best logit of
    all other classes, because a softmax leaves the sum of the logits open.

    Args:
        mask_cls: (Q, K + 1) logits.
        mask_pred: (Q, h, w) logits.
        semantic_logits: (K, h, w).

    Returns:
        (Q, h, w) float32.
    """
    if len(semantic_logits) < 2:  # the only class has no rival
        return mask_pred.float()
    classes, of_query = mask_cls[:, :-1].argmax(1).unique(return_inverse=True)
    first, second = semantic_logits.float().topk(2, dim=0).values
    semantic = semantic_logits.float()[classes]
    margins = semantic - torch.where(semantic == first, second, first)
    return hadamard_product(mask_pred.float(), margins[of_query])


def wanted_outputs(cfg: Any, thing_classes: Collection[int]) -> MaskOutputs:
    """The outputs that MODEL.MASK_FORMER.TEST asks for, with their thresholds.

    Args:
        cfg: a config with the keys of `add_panoptic_ext_config`.
        thing_classes: which classes of the head are things.
    """
    keys = cfg.MODEL.MASK_FORMER.TEST
    # If semantic scores are the only output, classes may be summed up before they are resized. The
    # other outputs need the resized masks, and semantic scores are then computed from these.
    resize_first = keys.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE
    return MaskOutputs(
        panoptic=keys.PANOPTIC_ON,
        semantic=keys.SEMANTIC_ON,
        instances=keys.INSTANCE_ON,
        thing_ids=frozenset(thing_classes),
        object_mask_threshold=keys.OBJECT_MASK_THRESHOLD,
        overlap_threshold=keys.OVERLAP_THRESHOLD,
        resize_first=resize_first or keys.INSTANCE_ON or keys.PANOPTIC_ON,
        top_k=cfg.TEST.DETECTIONS_PER_IMAGE,
    )


def build_segmentation(cfg: Any, thing_classes: Collection[int]) -> MaskSegmentation:
    """Build the conversion for the decoder and the task of a config; see `wanted_outputs`."""
    wanted = wanted_outputs(cfg, thing_classes)
    # The semantic map of an instance model was never trained on stuff: all its outputs come from
    # the queries.
    if transformer_decoder_class(cfg).places_queries and mask_former_task(cfg) == "panoptic":
        fuses = cfg.MODEL.MASK_FORMER.TEST.HADAMARD_FUSION
        return PlacedSegmentation(wanted, stuff_area_threshold(cfg), hadamard_fusion=fuses)
    return MaskSegmentation(wanted)
