"""Mask heads that return the logits of the predicted class, not only their sigmoid.

Shapes: N detections of all images, T thing classes, M = 28 cells a side of a mask.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.mask_head import (
    ROI_MASK_HEAD_REGISTRY,
    BaseMaskRCNNHead,
    MaskRCNNConvUpsampleHead,
    mask_rcnn_inference,
)
from detectron2.structures import Instances
from torch import Tensor

from panoptic_ext.modeling.layers.separable_conv import SeparableConv2d

__all__ = ["KeepsMaskLogits", "MaskLogitsConvUpsampleHead", "SeparableMaskHead"]


class KeepsMaskLogits(BaseMaskRCNNHead):
    """A base class in front of another mask head: adds `pred_mask_logits` to the detections.

    The logits are those of the predicted class, (n, 1, M, M) in each image. Detectron2's own
    `pred_masks`, their sigmoid, stays.
    """

    def forward(self, x: Tensor, instances: list[Instances]) -> Any:
        """As the mask head's: losses in training, else the instances with masks."""
        if self.training:
            return super().forward(x, instances)
        logits = self.layers(x)
        mask_rcnn_inference(logits, instances)
        if logits.shape[1] > 1:
            classes = torch.cat([detections.pred_classes for detections in instances])
            logits = logits[torch.arange(len(logits), device=logits.device), classes][:, None]
        counts = [len(detections) for detections in instances]
        for detections, image_logits in zip(instances, logits.split(counts), strict=True):
            detections.pred_mask_logits = image_logits
        return instances


@ROI_MASK_HEAD_REGISTRY.register()
class MaskLogitsConvUpsampleHead(KeepsMaskLogits, MaskRCNNConvUpsampleHead):
    """Detectron2's MaskRCNNConvUpsampleHead, its keys and weights, that keeps mask logits."""


@ROI_MASK_HEAD_REGISTRY.register()
class SeparableMaskHead(KeepsMaskLogits, MaskRCNNConvUpsampleHead):
    """Mask head of EfficientPS: separable convolutions, upsampling by 2, a 1x1 convolution.

    Source: Mohan and Valada, IJCV 2021, section 3.4.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        conv_dims: list[int],
        conv_norm: str = "",
        activation: str = "leaky_relu",
        **kwargs: Any,
    ) -> None:
        """Args:
        input_shape: of the pooled region features.
        num_classes: T, or 1 for one mask whatever the class.
        conv_dims: channels of each separable convolution and, last, of the upsampling one.
        conv_norm: norm of the separable convolutions.
        activation: of the separable convolutions.
        **kwargs: as Detectron2's BaseMaskRCNNHead.
        """
        super().__init__(
            input_shape, num_classes=num_classes, conv_dims=conv_dims, conv_norm="", **kwargs
        )
        for name, conv in list(self.named_children()):
            if name.startswith("mask_fcn"):
                separable = SeparableConv2d(
                    conv.in_channels, conv.out_channels, norm=conv_norm, activation=activation
                )
                setattr(self, name, separable)
        self.conv_norm_relus = [m for m in self if isinstance(m, SeparableConv2d)]

    @classmethod
    def from_config(cls, cfg: Any, input_shape: ShapeSpec) -> dict[str, Any]:
        ret = super().from_config(cfg, input_shape)
        ret["activation"] = cfg.MODEL.ROI_MASK_HEAD.ACTIVATION
        return ret
