"""The FPN pixel decoder, and the convolutions that it shares with the deformable pixel decoder.

Shapes: B batch, C the decoder's channels; features are (B, C_i, H / stride, W / stride).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fvcore.nn.weight_init as weight_init
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from torch import Tensor, nn
from torch.nn import functional as F

from panoptic_ext.modeling.pixel_decoder.build import PIXEL_DECODER_REGISTRY, checked_features

__all__ = ["NUM_SCALES", "BasePixelDecoder", "lateral_conv", "output_conv"]

NUM_SCALES = 3  # number of maps that the transformer decoder takes


def lateral_conv(in_channels: int, channels: int, norm: str | Callable[[int], nn.Module]) -> Conv2d:
    """1x1 convolution and norm."""
    conv = Conv2d(
        in_channels,
        channels,
        kernel_size=1,
        bias=norm == "",
        norm=get_norm(norm, channels),
    )
    weight_init.c2_xavier_fill(conv)
    return conv


def output_conv(in_channels: int, channels: int, norm: str | Callable[[int], nn.Module]) -> Conv2d:
    """3x3 convolution, norm and ReLU."""
    conv = Conv2d(
        in_channels,
        channels,
        kernel_size=3,
        padding=1,
        bias=norm == "",
        norm=get_norm(norm, channels),
        activation=F.relu,
    )
    weight_init.c2_xavier_fill(conv)
    return conv


class BasePixelDecoder(nn.Module):
    """Feature pyramid network (Lin et al., CVPR 2017).

    In the state dict `adapter_i` is the lateral and `layer_i` the output convolution of the i-th
    finest feature, from 1; the coarsest has no lateral one.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        conv_dim: int,
        mask_dim: int,
        norm: str | Callable[[int], nn.Module] = "",
    ) -> None:
        """Args:
        input_shape: the features to use, by name, with channels and stride; at least three.
        conv_dim: channels C of the pyramid and of the multi-scale features.
        mask_dim: channels of mask_features.
        norm: of the convolutions, as Detectron2's `get_norm`; "" for none (with a bias).
        """
        super().__init__()
        if len(input_shape) < NUM_SCALES:
            raise ValueError(f"an FPN needs {NUM_SCALES} features, got {list(input_shape)}")
        self.in_features = sorted(input_shape, key=lambda name: input_shape[name].stride)
        for i, name in enumerate(self.in_features, start=1):
            channels = input_shape[name].channels
            coarsest = i == len(self.in_features)
            if not coarsest:
                self.add_module(f"adapter_{i}", lateral_conv(channels, conv_dim, norm))
            self.add_module(
                f"layer_{i}", output_conv(channels if coarsest else conv_dim, conv_dim, norm)
            )
        self.mask_features = Conv2d(conv_dim, mask_dim, kernel_size=3, padding=1)
        weight_init.c2_xavier_fill(self.mask_features)

    @classmethod
    def from_config(cls, cfg: Any, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        keys = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": checked_features(
                input_shape, keys.IN_FEATURES, "MODEL.SEM_SEG_HEAD.IN_FEATURES"
            ),
            "conv_dim": keys.CONVS_DIM,
            "mask_dim": keys.MASK_DIM,
            "norm": keys.NORM,
        }

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Backbone `features` by name -> mask_features and three maps.

        Returns:
            mask_features (B, mask_dim, h, w) at the finest stride, and the three coarsest levels
            (B, conv_dim, h_i, w_i), coarse to fine.
        """
        levels: list[Tensor] = []
        for i in range(len(self.in_features), 0, -1):
            x = features[self.in_features[i - 1]]
            if levels:
                lateral = self.get_submodule(f"adapter_{i}")(x)
                x = lateral + F.interpolate(levels[-1], size=x.shape[-2:], mode="nearest")
            levels.append(self.get_submodule(f"layer_{i}")(x))
        return self.mask_features(levels[-1]), levels[:NUM_SCALES]


PIXEL_DECODER_REGISTRY.register(BasePixelDecoder)
