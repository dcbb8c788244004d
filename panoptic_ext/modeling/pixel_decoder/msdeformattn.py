"""The pixel decoder of Mask2Former (Cheng et al., CVPR 2022): deformable encoder, then an FPN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from panoptic_ext.modeling.layers.position_encoding import sine_position_embedding
from panoptic_ext.modeling.pixel_decoder.build import PIXEL_DECODER_REGISTRY, checked_features
from panoptic_ext.modeling.pixel_decoder.deformable_encoder import DeformableEncoder
from panoptic_ext.modeling.pixel_decoder.fpn import NUM_SCALES, lateral_conv, output_conv

__all__ = ["MSDeformAttnPixelDecoder"]


class MSDeformAttnPixelDecoder(nn.Module):
    """Deformable attention among the coarse features; an FPN then adds the finer features.

    In the state dict `input_proj.i` belongs to the i-th coarsest feature of the encoder, and
    `adapter_i`, `layer_i` to the i-th finest feature, from 1.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        encoder_in_features: list[str],
        conv_dim: int,
        mask_dim: int,
        norm: str | Callable[[int], nn.Module] = "GN",
        encoder_layers: int = 6,
        heads: int = 8,
        points: int = 4,
        width: int = 1024,
        dropout: float = 0.0,
        common_stride: int = 4,
        backend: str = "auto",
        full_precision: bool = True,
    ) -> None:
        """Args:
        input_shape: the features to use, by name, with channels and stride.
        encoder_in_features: the coarsest of these features, which enter the encoder.
        conv_dim: channels C of encoder and FPN, a multiple of 32 and of `heads`.
        mask_dim: channels of mask_features.
        norm: of the FPN's convolutions, as Detectron2's `get_norm`.
        encoder_layers, heads, points, width, dropout, backend: see `DeformableEncoder`.
        common_stride: stride of mask_features. The FPN adds the features from this stride up to the
            encoder's finest one.
        full_precision: whether to compute in float32 under autocast, as the published decoder does.
        """
        super().__init__()
        self.full_precision = full_precision
        by_stride = sorted(input_shape, key=lambda name: input_shape[name].stride)
        self.encoder_features = [n for n in reversed(by_stride) if n in encoder_in_features]
        finest = input_shape[self.encoder_features[-1]].stride
        self.fpn_features = [
            n for n in by_stride if common_stride <= input_shape[n].stride < finest
        ]
        self._check(input_shape, common_stride)
        self.input_proj = nn.ModuleList(
            _input_projection(input_shape[name].channels, conv_dim)
            for name in self.encoder_features
        )
        self.transformer = DeformableEncoder(
            channels=conv_dim,
            width=width,
            layers=encoder_layers,
            levels=len(self.encoder_features),
            heads=heads,
            points=points,
            dropout=dropout,
            backend=backend,
        )
        for i, name in enumerate(self.fpn_features, start=1):
            channels = input_shape[name].channels
            self.add_module(f"adapter_{i}", lateral_conv(channels, conv_dim, norm))
            self.add_module(f"layer_{i}", output_conv(conv_dim, conv_dim, norm))
        self.mask_features = Conv2d(conv_dim, mask_dim, kernel_size=1)
        weight_init.c2_xavier_fill(self.mask_features)

    def _check(self, input_shape: dict[str, ShapeSpec], common_stride: int) -> None:
        levels = len(self.encoder_features) + len(self.fpn_features)
        if levels < NUM_SCALES:
            raise ValueError(
                f"the transformer decoder takes {NUM_SCALES} maps, but features "
                f"{self.encoder_features} and {self.fpn_features} make {levels}"
            )
        finest = (self.fpn_features or self.encoder_features[-1:])[0]
        if input_shape[finest].stride != common_stride:
            raise ValueError(
                f"mask_features are to have stride {common_stride}, but the finest feature "
                f"{finest!r} has {input_shape[finest].stride}"
            )

    @classmethod
    def from_config(cls, cfg: Any, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        keys = cfg.MODEL.SEM_SEG_HEAD
        encoder = "DEFORMABLE_TRANSFORMER_ENCODER"
        encoder_features = keys[f"{encoder}_IN_FEATURES"]
        used = checked_features(input_shape, keys.IN_FEATURES, "MODEL.SEM_SEG_HEAD.IN_FEATURES")
        checked_features(used, encoder_features, f"MODEL.SEM_SEG_HEAD.{encoder}_IN_FEATURES")
        return {
            "input_shape": used,
            "encoder_in_features": encoder_features,
            "conv_dim": keys.CONVS_DIM,
            "mask_dim": keys.MASK_DIM,
            "norm": keys.NORM,
            "encoder_layers": keys.TRANSFORMER_ENC_LAYERS,
            "heads": keys[f"{encoder}_N_HEADS"] or cfg.MODEL.MASK_FORMER.NHEADS,
            "points": keys[f"{encoder}_N_POINTS"],
            "width": keys[f"{encoder}_DIM_FEEDFORWARD"],
            "dropout": cfg.MODEL.MASK_FORMER.DROPOUT,
            "common_stride": keys.COMMON_STRIDE,
            "backend": keys[f"{encoder}_BACKEND"],
            "full_precision": keys.PIXEL_DECODER_FULL_PRECISION,
        }

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Backbone `features` by name -> mask_features and three maps.

        Returns:
            mask_features (B, mask_dim, h, w) at the common stride, and three maps (B, conv_dim,
            h_i, w_i), coarse to fine.
        """
        device_type = features[self.encoder_features[0]].device.type
        if self.full_precision and torch.is_autocast_enabled(device_type):
            with torch.autocast(device_type, enabled=False):
                return self._decode({name: feature.float() for name, feature in features.items()})
        return self._decode(features)

    def _decode(self, features: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        maps = [
            project(features[name])
            for name, project in zip(self.encoder_features, self.input_proj, strict=True)
        ]
        positions = [
            sine_position_embedding(m.shape[-2], m.shape[-1], m.shape[1], m.device) for m in maps
        ]
        levels = self.transformer(maps, positions)
        top_down = levels[-1]
        if top_down.device.type != "cpu":
            # The layout of the backbone's maps, which are added to it below.
            top_down = top_down.contiguous()
        for i in range(len(self.fpn_features), 0, -1):
            lateral = self.get_submodule(f"adapter_{i}")(features[self.fpn_features[i - 1]])
            top_down = F.interpolate(
                top_down, size=lateral.shape[-2:], mode="bilinear", align_corners=False
            )
            # In place if the types agree, and `lateral` is freed early: these maps are the largest.
            top_down = (
                top_down.add_(lateral) if top_down.dtype == lateral.dtype else top_down + lateral
            )
            del lateral
            top_down = self.get_submodule(f"layer_{i}")(top_down)
            levels.append(top_down)
        return self.mask_features(levels[-1]), levels[:NUM_SCALES]


def _input_projection(in_channels: int, channels: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, kernel_size=1)
    nn.init.xavier_uniform_(conv.weight, gain=1)
    nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, nn.GroupNorm(32, channels))


PIXEL_DECODER_REGISTRY.register(MSDeformAttnPixelDecoder)
