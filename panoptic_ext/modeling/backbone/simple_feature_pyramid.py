"""Simple feature pyramid of ViTDet (Li et al., ECCV 2022, section 3) over a plain ViT.

A plain ViT has one feature map. Every level of the pyramid is computed from it alone, by transposed
convolutions or by pooling; there is no path from level to level.

Shapes: B images, D channels of the backbone's map, P its stride in pixels; C channels of every
level; level i has stride 2^i and is called p<i> or res<i>.
"""

from __future__ import annotations

import re
from typing import Any

from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

from panoptic_ext.errors import ConfigError, check_known
from panoptic_ext.modeling.backbone.plain_vit import build_plain_vit_backbone
from panoptic_ext.modeling.layers.doubling import DoublingConv2d
from panoptic_ext.modeling.layers.layer_norm import LayerNorm2d

__all__ = ["SimpleFeaturePyramid", "build_plain_vit_pyramid_backbone"]

# The coarsest level with convolutions of its own. Coarser ones are every second pixel of the level
# before, as in the FPN of Detectron2.
_LAST_LEVEL = 5
_NORMS = ("LN", "BN", "SyncBN", "FrozenBN", "GN", "")


class SimpleFeaturePyramid(Backbone):
    """Feature maps of several strides from the only feature map of a backbone.

    In the state dict, `simfp_<i>` are the layers of level i, with the names of Detectron2's ViTDet.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        out_features: list[str],
        out_channels: int = 256,
        *,
        in_feature: str = "last_feat",
        norm: str = "LN",
    ) -> None:
        """Args:
        bottom_up: the backbone that computes the map.
        out_features: names of the levels, such as ["res2", "res3", "res4", "res5"] for
            Mask2Former or ["p2", "p3", "p4", "p5", "p6"] for detectors. Levels from 6 on need
            level 5.
        out_channels: C.
        in_feature: name of the map among the outputs of `bottom_up`.
        norm: "LN" (paper: layer norm over channels), another one of Detectron2's, or "" for none.

        Raises:
            ConfigError: a name that is no level, a norm that is unknown, or a stride of the map
                that is no power of 2.
        """
        super().__init__()
        check_known("MODEL.SIMPLE_FEATURE_PYRAMID.NORM", norm, _NORMS)
        levels = _levels(out_features)
        shape = bottom_up.output_shape()[in_feature]
        map_level = _level_of_stride(shape.stride)
        self.bottom_up = bottom_up
        self.in_feature = in_feature
        for level in levels.values():
            if level <= _LAST_LEVEL:
                layers = _level_layers(level - map_level, shape.channels, out_channels, norm)
                self.add_module(f"simfp_{level}", layers)
        self.levels = levels
        self._out_features = list(levels)
        self._out_feature_strides = {name: 2**level for name, level in levels.items()}
        self._out_feature_channels = dict.fromkeys(levels, out_channels)

    @property
    def size_divisibility(self) -> int:
        """The number of pixels that the input's sides must be multiples of."""
        computed = [2**level for level in self.levels.values() if level <= _LAST_LEVEL]
        return max(self.bottom_up.size_divisibility, *computed)

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Those of the bottom-up backbone; empty in Detectron2 v0.6, which has none."""
        return getattr(self.bottom_up, "padding_constraints", {})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, h, w) -> maps by name, fine to coarse, (B, C, h / 2^i, w / 2^i)."""
        feature = self.bottom_up(x)[self.in_feature]
        computed = {
            level: self.get_submodule(f"simfp_{level}")(feature)
            for level in self.levels.values()
            if level <= _LAST_LEVEL
        }
        return {
            name: computed[level] if level in computed else _subsampled(computed, level)
            for name, level in self.levels.items()
        }


def _subsampled(computed: dict[int, Tensor], level: int) -> Tensor:
    step = 2 ** (level - _LAST_LEVEL)
    return computed[_LAST_LEVEL][..., ::step, ::step]


def _levels(out_features: list[str]) -> dict[str, int]:
    """Name -> level, fine to coarse."""
    key = "MODEL.SIMPLE_FEATURE_PYRAMID.OUT_FEATURES"
    levels = {}
    for name in out_features:
        match = re.fullmatch(r"(?:p|res)(\d)", name)
        if match is None:
            raise ConfigError(
                f"{key} has {name!r}; a level is called p<i> or res<i>, with stride 2^i, such as "
                "'res2' for stride 4"
            )
        levels[name] = int(match[1])
    coarse = [name for name, level in levels.items() if level > _LAST_LEVEL]
    if not levels or (coarse and _LAST_LEVEL not in levels.values()):
        found = f"{', '.join(coarse)} without level {_LAST_LEVEL}" if coarse else "no level"
        raise ConfigError(
            f"{key} has {found}; take ['res2', 'res3', 'res4', 'res5'] for Mask2Former or "
            "['p2', 'p3', 'p4', 'p5', 'p6'] for Panoptic FPN"
        )
    return dict(sorted(levels.items(), key=lambda item: item[1]))


def _level_of_stride(stride: int) -> int:
    if stride & (stride - 1):
        raise ConfigError(
            f"a simple feature pyramid needs a stride that is a power of 2, but the ViT has "
            f"patches of {stride} pixels; MODEL.VIT.PATCH_SIZE 16 resamples its patch embedding"
        )
    return stride.bit_length() - 1


def _level_layers(coarser: int, dim: int, out_channels: int, norm: str) -> nn.Sequential:
    """Resize D = `dim` channels, by 2^-coarser in each direction, then two convolutions to C."""
    layers: list[nn.Module] = []
    for step in range(-coarser):
        if step > 0:
            layers += [*_norm_layers(norm, dim), nn.GELU()]
        layers.append(DoublingConv2d(dim, dim // 2))
        dim //= 2
    if coarser > 0:
        layers.append(nn.MaxPool2d(2**coarser, ceil_mode=True))
    for inputs, kernel in ((dim, 1), (out_channels, 3)):
        layers.append(
            Conv2d(
                inputs,
                out_channels,
                kernel,
                padding=kernel // 2,
                bias=not norm,
                norm=_make_norm(norm, out_channels),
            )
        )
    return nn.Sequential(*layers)


def _norm_layers(norm: str, channels: int) -> list[nn.Module]:
    made = _make_norm(norm, channels)
    return [] if made is None else [made]


def _make_norm(norm: str, channels: int) -> nn.Module | None:
    return get_norm(LayerNorm2d if norm == "LN" else norm, channels)


@BACKBONE_REGISTRY.register()
def build_plain_vit_pyramid_backbone(cfg: Any, input_shape: ShapeSpec) -> SimpleFeaturePyramid:
    """Simple feature pyramid over the plain ViT that MODEL.VIT names."""
    keys = cfg.MODEL.SIMPLE_FEATURE_PYRAMID
    return SimpleFeaturePyramid(
        build_plain_vit_backbone(cfg, input_shape),
        list(keys.OUT_FEATURES),
        keys.OUT_CHANNELS,
        norm=keys.NORM,
    )
