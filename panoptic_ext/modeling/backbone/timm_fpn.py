"""Detectron2's feature pyramid (Lin et al., CVPR 2017) over a timm model, for Panoptic FPN.

Shapes: level i has stride 2^i and is called p<i>.
"""

from __future__ import annotations

import itertools
from typing import Any

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from panoptic_ext.errors import ConfigError, check_known
from panoptic_ext.modeling.backbone.timm_backbone import build_timm_backbone

__all__ = ["build_fpn", "build_timm_fpn_backbone"]


def build_fpn(
    bottom_up: Backbone,
    in_features: list[str],
    out_channels: int = 256,
    *,
    norm: str = "",
    fuse_type: str = "sum",
) -> FPN:
    """Detectron2's FPN, with one level more by max pooling, over any backbone.

    Args:
        bottom_up: the backbone that computes the features.
        in_features: names of its outputs to use, in any order; empty for all of them.
        out_channels: channels of every level.
        norm: as `detectron2.layers.get_norm`; "" for none.
        fuse_type: "sum" or "avg" of a level and the coarser one.

    Raises:
        ConfigError: a feature that `bottom_up` does not have, strides that do not double from one
            feature to the next, or an unknown `fuse_type`.
    """
    check_known("MODEL.FPN.FUSE_TYPE", fuse_type, ("sum", "avg"))
    shapes = bottom_up.output_shape()
    for name in in_features:
        check_known("feature in MODEL.FPN.IN_FEATURES", name, shapes)
    names = sorted(set(in_features) or shapes, key=lambda name: shapes[name].stride)
    strides = [shapes[name].stride for name in names]
    if any(coarse != 2 * fine for fine, coarse in itertools.pairwise(strides)):
        raise ConfigError(
            f"an FPN needs features whose strides double, but {', '.join(names)} have strides "
            f"{strides}; choose with MODEL.FPN.IN_FEATURES"
        )
    top_block = LastLevelMaxPool()
    top_block.in_feature = f"p{strides[-1].bit_length() - 1}"
    return FPN(bottom_up, names, out_channels, norm=norm, top_block=top_block, fuse_type=fuse_type)


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> FPN:
    """FPN of MODEL.FPN over the timm model that MODEL.TIMM names."""
    keys = cfg.MODEL.FPN
    return build_fpn(
        build_timm_backbone(cfg, input_shape),
        list(keys.IN_FEATURES),
        keys.OUT_CHANNELS,
        norm=keys.NORM,
        fuse_type=keys.FUSE_TYPE,
    )
