"""Semantic head of EfficientPS (Mohan and Valada, IJCV 2021, section 3.3).

    p2, p3 -> LSFE (fine features)          p4, p5 -> DPC (context)
    a  = MC(D16 + up(D32))                  MC: mismatch correction, to twice the size
    F8 = LSFE(p3) + a
    F4 = LSFE(p2) + MC(F8)
    classes = 1x1 [F4, up F8, up D16, up D32]

Shapes: B images, K classes, C channels (CONVS_DIM), H x W pixels of the padded input; X16 is of
stride 16. "up" is bilinear.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.layers.class_layer import ClassLayer
from panoptic_ext.modeling.layers.separable_conv import SeparableConv2d, make_conv
from panoptic_ext.modeling.semantic_head.hard_pixel_loss import hard_pixel_cross_entropy

__all__ = ["DensePredictionCell", "EfficientPSSemSegHead"]


class DensePredictionCell(nn.Module):
    """Dense prediction cell (Chen et al., NeurIPS 2018) on separable convolutions.

    One dilated convolution, four branches behind it, and a 1x1 convolution of all five.
    """

    def __init__(
        self, in_channels: int, hidden: int, out_channels: int, *, norm: str, activation: str
    ) -> None:
        """Args:
        in_channels, hidden, out_channels: channels before, within and after.
        norm, activation: of every convolution.
        """
        super().__init__()
        kind: dict[str, Any] = {"norm": norm, "activation": activation}
        self.first = SeparableConv2d(in_channels, hidden, dilation=(1, 6), **kind)
        self.branch1 = SeparableConv2d(hidden, hidden, dilation=(1, 1), **kind)
        self.branch2 = SeparableConv2d(hidden, hidden, dilation=(6, 21), **kind)
        self.branch3 = SeparableConv2d(hidden, hidden, dilation=(18, 15), **kind)
        self.branch4 = SeparableConv2d(hidden, hidden, dilation=(6, 3), **kind)
        self.project = make_conv(5 * hidden, out_channels, 1, **kind)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C', h, w) -> (B, C, h, w)."""
        first = self.first(x)
        third = self.branch3(first)
        branches = [first, self.branch1(first), self.branch2(first), third, self.branch4(third)]
        return self.project(torch.cat(branches, dim=1))


class _MismatchCorrection(nn.Sequential):
    """Two separable convolutions; the result at twice the size."""

    def forward(self, x: Tensor) -> Tensor:
        return _resize(super().forward(x), 2)


@SEM_SEG_HEADS_REGISTRY.register()
class EfficientPSSemSegHead(nn.Module):
    """LSFE on the two fine levels, DPC on the two coarse ones, mismatch correction between them."""

    common_stride = 4
    class_layers: ClassVar[Mapping[str, ClassLayer]] = {"predictor": ClassLayer(orders=("all",))}

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        num_classes: int,
        channels: int = 128,
        context_channels: int = 256,
        norm: str = "BN",
        activation: str = "leaky_relu",
        loss_weight: float = 1.0,
        hard_fraction: float = 0.25,
        ignore_value: int = 255,
    ) -> None:
        """Args:
        input_shape: of the four features, strides 4, 8, 16, 32.
        num_classes: K.
        channels: of LSFE, mismatch correction and of what DPC gives (paper: 128).
        context_channels: within DPC (paper: 256).
        norm, activation: of every convolution but the last.
        loss_weight: factor of the loss.
        hard_fraction: share of an image's labelled pixels that the loss uses, the worst ones.
        ignore_value: target of pixels without a label.

        Raises:
            ConfigError: other strides, or a share outside of (0, 1].
        """
        super().__init__()
        by_stride = {shape.stride: name for name, shape in input_shape.items()}
        if sorted(by_stride) != [4, 8, 16, 32] or len(input_shape) != 4:
            strides = ", ".join(f"{name} {shape.stride}" for name, shape in input_shape.items())
            raise ConfigError(
                "EfficientPSSemSegHead needs one feature of each stride 4, 8, 16 and 32, but "
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES chooses {strides or 'none'}"
            )
        if not 0 < hard_fraction <= 1:
            raise ConfigError(
                f"MODEL.SEM_SEG_HEAD.HARD_PIXEL_FRACTION = {hard_fraction}, expected more than 0 "
                "and at most 1"
            )
        self.in_features = [by_stride[stride] for stride in (4, 8, 16, 32)]
        self.loss_weight, self.hard_fraction = loss_weight, hard_fraction
        self.ignore_value = ignore_value
        p4, p8, p16, p32 = (input_shape[name].channels for name in self.in_features)
        kind: dict[str, Any] = {"norm": norm, "activation": activation}

        def pair(in_channels: int) -> list[nn.Module]:
            first = SeparableConv2d(in_channels, channels, **kind)
            return [first, SeparableConv2d(channels, channels, **kind)]

        self.lsfe4, self.lsfe8 = nn.Sequential(*pair(p4)), nn.Sequential(*pair(p8))
        self.dpc16 = DensePredictionCell(p16, context_channels, channels, **kind)
        self.dpc32 = DensePredictionCell(p32, context_channels, channels, **kind)
        self.correct16 = _MismatchCorrection(*pair(channels))
        self.correct8 = _MismatchCorrection(*pair(channels))
        self.predictor = Conv2d(4 * channels, num_classes, 1)
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.zeros_(self.predictor.bias)

    @classmethod
    def from_config(cls, cfg: Any, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        keys = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {n: s for n, s in input_shape.items() if n in keys.IN_FEATURES},
            "num_classes": keys.NUM_CLASSES,
            "channels": keys.CONVS_DIM,
            "context_channels": keys.DPC_DIM,
            "norm": keys.NORM,
            "activation": keys.ACTIVATION,
            "loss_weight": keys.LOSS_WEIGHT,
            "hard_fraction": keys.HARD_PIXEL_FRACTION,
            "ignore_value": keys.IGNORE_VALUE,
        }

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """As Detectron2's SemSegFPNHead.

        Args:
            features: by name, (B, C', H / stride, W / stride).
            targets: (B, H, W) int64 class ids, `ignore_value` where void; in training only.

        Returns:
            In training (None, {"loss_sem_seg": scalar}), else (logits (B, K, H, W), {}).
        """
        logits = self.layers(features)
        if self.training:
            return None, self.losses(logits, targets)
        return _resize(logits, self.common_stride), {}

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """Features -> logits (B, K, H / 4, W / 4)."""
        p4, p8, p16, p32 = (features[name] for name in self.in_features)
        d16, d32 = self.dpc16(p16), self.dpc32(p32)
        f8 = self.lsfe8(p8) + self.correct16(d16 + _resize(d32, 2))
        f4 = self.lsfe4(p4) + self.correct8(f8)
        # 1x1 convolution and resizing commute: K channels are resized instead of C.
        weights = self.predictor.weight.chunk(4, dim=1)
        logits = F.conv2d(f4, weights[0], self.predictor.bias)
        for x, weight, scale in zip((f8, d16, d32), weights[1:], (2, 4, 8), strict=True):
            logits = logits + _resize(F.conv2d(x, weight), scale)
        return logits

    def losses(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Cross-entropy over the worst pixels of each image.

        Args:
            predictions: (B, K, H / 4, W / 4) logits, any float type.
            targets: (B, H, W) int64 class ids, `ignore_value` where void.

        Returns:
            {"loss_sem_seg": scalar}, weighted.
        """
        loss = hard_pixel_cross_entropy(
            _resize(predictions.float(), self.common_stride),
            targets,
            fraction=self.hard_fraction,
            ignore_value=self.ignore_value,
        )
        return {"loss_sem_seg": loss * self.loss_weight}


def _resize(x: Tensor, scale: int) -> Tensor:
    return F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
