from .efficientps import EfficientPS
from .mask_former import PanopticExtMaskFormer
from .mask_former_head import PanopticExtMaskFormerHead
from .panoptic_fpn import UnifiedPanopticFPN

__all__ = [
    "EfficientPS",
    "PanopticExtMaskFormer",
    "PanopticExtMaskFormerHead",
    "UnifiedPanopticFPN",
]
