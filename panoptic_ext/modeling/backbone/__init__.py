"""Backbones that Detectron2 lacks; importing this module registers them."""

from .swin import PanopticExtSwinTransformer, SwinTransformer
from .timm_backbone import TimmBackbone, build_timm_backbone
from .two_way_fpn import (
    TwoWayFPN,
    build_resnet_two_way_fpn_backbone,
    build_timm_two_way_fpn_backbone,
    build_two_way_fpn_backbone,
)

__all__ = [
    "PanopticExtSwinTransformer",
    "SwinTransformer",
    "TimmBackbone",
    "TwoWayFPN",
    "build_resnet_two_way_fpn_backbone",
    "build_timm_backbone",
    "build_timm_two_way_fpn_backbone",
    "build_two_way_fpn_backbone",
]
