"""Heads on regions of interest; importing this module registers them."""

from panoptic_ext.modeling.roi_heads.mask_head import (
    KeepsMaskLogits,
    MaskLogitsConvUpsampleHead,
    SeparableMaskHead,
)

__all__ = ["KeepsMaskLogits", "MaskLogitsConvUpsampleHead", "SeparableMaskHead"]
