"""Backbones that Detectron2 lacks; importing this module registers them."""

from .swin import PanopticExtSwinTransformer, SwinTransformer
from .timm_backbone import TimmBackbone, build_timm_backbone

__all__ = [
    "PanopticExtSwinTransformer",
    "SwinTransformer",
    "TimmBackbone",
    "build_timm_backbone",
]
