"""Semantic heads and their loss; importing this module registers them."""

from panoptic_ext.modeling.semantic_head.efficientps import (
    DensePredictionCell,
    EfficientPSSemSegHead,
)
from panoptic_ext.modeling.semantic_head.sem_seg_fpn import VoidSafeSemSegFPNHead

__all__ = ["DensePredictionCell", "EfficientPSSemSegHead", "VoidSafeSemSegFPNHead"]
