"""Models and their parts; importing this module registers them in Detectron2's registries."""

from panoptic_ext.config.published_names import resolve_published_names
from panoptic_ext.modeling.backbone import TwoWayFPN
from panoptic_ext.modeling.meta_arch import (
    EfficientPS,
    PanopticExtEoMT,
    PanopticExtMaskFormer,
    PanopticExtMaskFormerHead,
    PanopticExtPMT,
    TransformersPanoptic,
    UnifiedPanopticFPN,
)
from panoptic_ext.modeling.proposal_generator import SeparableRPNHead
from panoptic_ext.modeling.roi_heads import MaskLogitsConvUpsampleHead, SeparableMaskHead
from panoptic_ext.modeling.semantic_head import EfficientPSSemSegHead, VoidSafeSemSegFPNHead

__all__ = [
    "EfficientPS",
    "EfficientPSSemSegHead",
    "MaskLogitsConvUpsampleHead",
    "PanopticExtEoMT",
    "PanopticExtMaskFormer",
    "PanopticExtMaskFormerHead",
    "PanopticExtPMT",
    "SeparableMaskHead",
    "SeparableRPNHead",
    "TransformersPanoptic",
    "TwoWayFPN",
    "UnifiedPanopticFPN",
    "VoidSafeSemSegFPNHead",
    "resolve_published_names",
]
