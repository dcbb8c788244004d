"""Models and their parts; importing this module registers them in Detectron2's registries."""

from .meta_arch import PanopticExtMaskFormer, PanopticExtMaskFormerHead, UnifiedPanopticFPN
from .published_names import resolve_published_names
from .semantic_head import VoidSafeSemSegFPNHead

__all__ = [
    "PanopticExtMaskFormer",
    "PanopticExtMaskFormerHead",
    "UnifiedPanopticFPN",
    "VoidSafeSemSegFPNHead",
    "resolve_published_names",
]
