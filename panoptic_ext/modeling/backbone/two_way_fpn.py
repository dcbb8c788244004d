"""Two-way feature pyramid of EfficientPS (Mohan and Valada, IJCV 2021, section 3.2).

Two feature pyramids, each with its own lateral convolutions, get the same backbone features. One
sums them from coarse to fine, the other from fine to coarse. One output convolution per level
processes the sum of both pyramids.

Shapes: B images, C channels; level i has stride 2^i and is called p<i>.
"""

from __future__ import annotations

from typing import Any

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone, build_resnet_backbone
from torch import Tensor, nn
from torch.nn import functional as F

from panoptic_ext.errors import ConfigError, check_known, look_up
from panoptic_ext.modeling.backbone.timm_backbone import build_timm_backbone
from panoptic_ext.modeling.layers.separable_conv import SeparableConv2d, make_conv

__all__ = [
    "TwoWayFPN",
    "build_resnet_two_way_fpn_backbone",
    "build_timm_two_way_fpn_backbone",
    "build_two_way_fpn_backbone",
]


class TwoWayFPN(Backbone):
    """Two-way FPN over any backbone of Detectron2."""

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: list[str],
        out_channels: int = 256,
        *,
        norm: str = "",
        activation: str = "leaky_relu",
        separable: bool = True,
    ) -> None:
        """Args:
        bottom_up: the backbone that computes the features.
        in_features: names of its outputs to use; empty for all of them.
        out_channels: C of every output.
        norm: as `detectron2.layers.get_norm`; "" for none.
        activation: of every convolution, as `make_activation`.
        separable: whether output convolutions are depthwise separable (paper) or full (published
            code).

        Raises:
            ConfigError: a feature that `bottom_up` does not have, or two of the same stride.
        """
        super().__init__()
        shapes = _chosen_shapes(bottom_up.output_shape(), in_features)
        self.bottom_up = bottom_up
        self.in_features = list(shapes)  # fine to coarse
        kind: dict[str, Any] = {"norm": norm, "activation": activation}
        self.top_down = nn.ModuleDict()
        self.bottom_to_top = nn.ModuleDict()
        self.output = nn.ModuleDict()
        for shape in shapes.values():
            name = f"p{shape.stride.bit_length() - 1}"
            self.top_down[name] = make_conv(shape.channels, out_channels, 1, **kind)
            self.bottom_to_top[name] = make_conv(shape.channels, out_channels, 1, **kind)
            self.output[name] = (
                SeparableConv2d(out_channels, out_channels, **kind)
                if separable
                else make_conv(out_channels, out_channels, 3, **kind)
            )
        self._out_features = list(self.output)
        strides = [shape.stride for shape in shapes.values()]
        self._out_feature_strides = dict(zip(self._out_features, strides, strict=True))
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)

    @property
    def size_divisibility(self) -> int:
        """The number of pixels that the input's sides must be multiples of."""
        return max(self.bottom_up.size_divisibility, *self._out_feature_strides.values())

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Those of the bottom-up backbone; empty in Detectron2 v0.6, which has none."""
        return getattr(self.bottom_up, "padding_constraints", {})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, h, w) -> {"p2": (B, C, h/4, w/4), ...}, fine to coarse."""
        features = self.bottom_up(x)
        inputs = [features[name] for name in self.in_features]
        names = self._out_features
        from_fine = _pyramid([self.bottom_to_top[n](f) for n, f in zip(names, inputs, strict=True)])
        laterals = [self.top_down[n](f) for n, f in zip(names, inputs, strict=True)]
        from_coarse = _pyramid(laterals[::-1])[::-1]
        return {
            name: self.output[name](up + down)
            for name, up, down in zip(names, from_fine, from_coarse, strict=True)
        }


def _pyramid(laterals: list[Tensor]) -> list[Tensor]:
    """Add to each level the sum of the levels before it, resized by nearest neighbour."""
    sums = laterals[:1]
    for lateral in laterals[1:]:
        sums.append(lateral + F.interpolate(sums[-1], size=lateral.shape[-2:], mode="nearest"))
    return sums


def _chosen_shapes(available: dict[str, ShapeSpec], in_features: list[str]) -> dict[str, ShapeSpec]:
    """Name -> shape of the features to use, fine to coarse."""
    for name in in_features:
        check_known("feature in MODEL.TWO_WAY_FPN.IN_FEATURES", name, available)
    names = sorted(in_features or available, key=lambda name: available[name].stride)
    strides = [available[name].stride for name in names]
    if len(set(strides)) < len(strides):
        raise ConfigError(
            f"the two-way FPN needs one feature per stride, but {', '.join(names)} have strides "
            f"{strides}; choose with MODEL.TWO_WAY_FPN.IN_FEATURES"
        )
    return {name: available[name] for name in names}


def _with_two_way_fpn(cfg: Any, bottom_up: Backbone) -> TwoWayFPN:
    keys = cfg.MODEL.TWO_WAY_FPN
    return TwoWayFPN(
        bottom_up,
        list(keys.IN_FEATURES),
        keys.OUT_CHANNELS,
        norm=keys.NORM,
        activation=keys.ACTIVATION,
        separable=keys.SEPARABLE,
    )


@BACKBONE_REGISTRY.register()
def build_timm_two_way_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> TwoWayFPN:
    """Two-way FPN over the timm model that MODEL.TIMM names."""
    return _with_two_way_fpn(cfg, build_timm_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_resnet_two_way_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> TwoWayFPN:
    """Two-way FPN over Detectron2's ResNet of MODEL.RESNETS."""
    return _with_two_way_fpn(cfg, build_resnet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_two_way_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> TwoWayFPN:
    """Two-way FPN over the backbone whose registered builder MODEL.TWO_WAY_FPN.BOTTOM_UP names."""
    name = cfg.MODEL.TWO_WAY_FPN.BOTTOM_UP
    bottom_up = look_up(BACKBONE_REGISTRY, "MODEL.TWO_WAY_FPN.BOTTOM_UP", name)
    return _with_two_way_fpn(cfg, bottom_up(cfg, input_shape))
