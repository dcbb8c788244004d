"""Mask2Former (Cheng et al., CVPR 2022): backbone, mask-classification head, loss and inference."""

from __future__ import annotations

from typing import Any

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_sem_seg_head
from torch import Tensor

from panoptic_ext.config.left_out import complete_config
from panoptic_ext.modeling.backbone.folded_norm import fold_norms
from panoptic_ext.modeling.mask_classification.build_criterion import (
    build_criterion,
    build_semantic_classifier,
)
from panoptic_ext.modeling.meta_arch.query_model import QueryModel
from panoptic_ext.modeling.meta_arch.segmentation import build_segmentation
from panoptic_ext.modeling.transformer_decoder import DecoderOutputs

__all__ = ["PanopticExtMaskFormer"]


@META_ARCH_REGISTRY.register()
class PanopticExtMaskFormer(QueryModel):
    """One model for panoptic, instance and semantic segmentation.

    The backbone gives features of images (B, 3, h, w) by name, and the head is a
    `PanopticExtMaskFormerHead`, or a module with the same interface.
    """

    @configurable
    def __init__(self, **arguments: Any) -> None:
        """Args: see `QueryModel`."""
        super().__init__(**arguments)
        self.find_unused_parameters = self.sem_seg_head.leaves_parameters_unused

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        cfg = complete_config(cfg, cls)
        backbone = fold_norms(build_backbone(cfg))
        divisibility = cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY
        arguments, things = cls.common_arguments(cfg)
        return {
            **arguments,
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "criterion": build_criterion(cfg),
            "segmentation": build_segmentation(cfg, things),
            "size_divisibility": divisibility if divisibility >= 0 else backbone.size_divisibility,
            "semantic_classifier": build_semantic_classifier(
                cfg, has_stuff=len(arguments["class_ids"]) > len(things)
            ),
        }

    def outputs(self, images: Tensor) -> DecoderOutputs:
        """See `QueryModel.outputs`."""
        aux = self.training and self.deep_supervision
        return self.sem_seg_head(self.backbone(images), aux=aux)
