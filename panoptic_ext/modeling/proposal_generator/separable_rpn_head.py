"""RPN head on a separable convolution. Shapes as in detectron2.modeling.proposal_generator.rpn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY, StandardRPNHead
from torch import nn

from panoptic_ext.modeling.layers.separable_conv import SeparableConv2d

__all__ = ["SeparableRPNHead"]


@RPN_HEAD_REGISTRY.register()
class SeparableRPNHead(StandardRPNHead):
    """Detectron2's StandardRPNHead with separable convolutions, norm and activation.

    Source: Mohan and Valada, IJCV 2021, section 3.4.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_anchors: int,
        box_dim: int = 4,
        conv_dims: Sequence[int] = (-1,),
        norm: str = "",
        activation: str = "leaky_relu",
    ) -> None:
        """Args:
        in_channels: of the feature maps.
        num_anchors: at each place of a feature map.
        box_dim: numbers that describe a box.
        conv_dims: channels of each separable convolution; -1 keeps their number.
        norm, activation: of the separable convolutions; a norm sees one level at a time.
        """
        super().__init__(
            in_channels=in_channels,
            num_anchors=num_anchors,
            box_dim=box_dim,
            conv_dims=list(conv_dims),
        )
        layers, channels = [], in_channels
        for dim in conv_dims:
            out_channels = channels if dim == -1 else dim
            layers.append(SeparableConv2d(channels, out_channels, norm=norm, activation=activation))
            channels = out_channels
        self.conv = nn.Sequential(*layers)

    @classmethod
    def from_config(cls, cfg: Any, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        ret = super().from_config(cfg, input_shape)
        ret["norm"] = cfg.MODEL.RPN.NORM
        ret["activation"] = cfg.MODEL.RPN.ACTIVATION
        return ret
