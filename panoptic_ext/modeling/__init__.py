"""Models and their parts; importing this module registers them in Detectron2's registries."""

from .meta_arch import UnifiedPanopticFPN
from .semantic_head import VoidSafeSemSegFPNHead

__all__ = ["UnifiedPanopticFPN", "VoidSafeSemSegFPNHead"]
