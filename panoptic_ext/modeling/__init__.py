"""Models and their parts; importing this module registers them in Detectron2's registries."""

from .backbone import TwoWayFPN
from .meta_arch import (
    EfficientPS,
    PanopticExtMaskFormer,
    PanopticExtMaskFormerHead,
    UnifiedPanopticFPN,
)
from .proposal_generator import SeparableRPNHead
from .published_names import resolve_published_names
from .roi_heads import MaskLogitsConvUpsampleHead, SeparableMaskHead
from .semantic_head import EfficientPSSemSegHead, VoidSafeSemSegFPNHead

__all__ = [
    "EfficientPS",
    "EfficientPSSemSegHead",
    "MaskLogitsConvUpsampleHead",
    "PanopticExtMaskFormer",
    "PanopticExtMaskFormerHead",
    "SeparableMaskHead",
    "SeparableRPNHead",
    "TwoWayFPN",
    "UnifiedPanopticFPN",
    "VoidSafeSemSegFPNHead",
    "resolve_published_names",
]
