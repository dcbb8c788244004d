"""Meta-architectures: whole models, wired from their parts; importing this registers them."""

from panoptic_ext.modeling.meta_arch.efficientps import EfficientPS
from panoptic_ext.modeling.meta_arch.eomt import PanopticExtEoMT
from panoptic_ext.modeling.meta_arch.mask_former import PanopticExtMaskFormer
from panoptic_ext.modeling.meta_arch.mask_former_head import PanopticExtMaskFormerHead
from panoptic_ext.modeling.meta_arch.panoptic_fpn import UnifiedPanopticFPN
from panoptic_ext.modeling.meta_arch.pmt import PanopticExtPMT
from panoptic_ext.modeling.meta_arch.transformers_panoptic import TransformersPanoptic

__all__ = [
    "EfficientPS",
    "PanopticExtEoMT",
    "PanopticExtMaskFormer",
    "PanopticExtMaskFormerHead",
    "PanopticExtPMT",
    "TransformersPanoptic",
    "UnifiedPanopticFPN",
]
