"""Backbones that Detectron2 lacks; importing this module registers them."""

from panoptic_ext.modeling.backbone.plain_vit import PlainViT, build_plain_vit_backbone
from panoptic_ext.modeling.backbone.simple_feature_pyramid import (
    SimpleFeaturePyramid,
    build_plain_vit_pyramid_backbone,
)
from panoptic_ext.modeling.backbone.swin import PanopticExtSwinTransformer, SwinTransformer
from panoptic_ext.modeling.backbone.timm_backbone import TimmBackbone, build_timm_backbone
from panoptic_ext.modeling.backbone.timm_fpn import build_timm_fpn_backbone
from panoptic_ext.modeling.backbone.two_way_fpn import (
    TwoWayFPN,
    build_resnet_two_way_fpn_backbone,
    build_timm_two_way_fpn_backbone,
    build_two_way_fpn_backbone,
)

__all__ = [
    "PanopticExtSwinTransformer",
    "PlainViT",
    "SimpleFeaturePyramid",
    "SwinTransformer",
    "TimmBackbone",
    "TwoWayFPN",
    "build_plain_vit_backbone",
    "build_plain_vit_pyramid_backbone",
    "build_resnet_two_way_fpn_backbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
    "build_timm_two_way_fpn_backbone",
    "build_two_way_fpn_backbone",
]
