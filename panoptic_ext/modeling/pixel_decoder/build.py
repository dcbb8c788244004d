"""The registry of pixel decoders and how a config names one of them."""

from __future__ import annotations

from typing import Any

from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import nn

from panoptic_ext.errors import ConfigError, look_up, unknown

__all__ = ["PIXEL_DECODER_REGISTRY", "build_pixel_decoder", "checked_features"]

PIXEL_DECODER_REGISTRY = Registry("PANOPTIC_EXT_PIXEL_DECODER")
PIXEL_DECODER_REGISTRY.__doc__ = """
Classes called as `decoder(cfg, input_shape)`, whose `forward(features)` returns mask_features
(B, MASK_DIM, H / stride, W / stride) and three multi_scale_features, coarse to fine.
"""


def build_pixel_decoder(cfg: Any, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build the decoder that MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME names.

    Args:
        cfg: a config with the keys of `add_panoptic_ext_config`.
        input_shape: the backbone's features by name, with channels and stride.

    Raises:
        ConfigError: unknown name, or features that the backbone does not give.
    """
    name = cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME
    key = "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME"
    return look_up(PIXEL_DECODER_REGISTRY, key, name)(cfg, input_shape)


def checked_features(
    input_shape: dict[str, ShapeSpec], names: list[str], key: str
) -> dict[str, ShapeSpec]:
    """Return the features that the config key `key` names, fine to coarse.

    Raises:
        ConfigError: a name that the backbone does not give.
    """
    for name in names:
        if name not in input_shape:
            mend = "build_plain_vit_pyramid_backbone makes levels of a ViT's only map"
            what, known = f"feature of the backbone in {key}", sorted(input_shape)
            raise ConfigError(
                unknown(what, name, known, mend=mend if known == ["last_feat"] else "")
            )
    by_stride = sorted(names, key=lambda name: input_shape[name].stride)
    return {name: input_shape[name] for name in by_stride}
