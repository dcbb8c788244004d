"""Depthwise separable convolution, and activations by name.

Shapes: B images, C channels, H x W pixels of a feature map.
"""

from __future__ import annotations

from functools import partial

from detectron2.layers import Conv2d, get_norm
from torch import Tensor, nn
from torch.nn import functional as F

from panoptic_ext.errors import check_known

__all__ = ["SeparableConv2d", "make_activation", "make_conv"]

_ACTIVATIONS = {
    "": nn.Identity,
    "leaky_relu": partial(nn.LeakyReLU, negative_slope=0.01, inplace=True),
    "relu": partial(nn.ReLU, inplace=True),
    "silu": partial(nn.SiLU, inplace=True),
}


def make_activation(name: str) -> nn.Module:
    """The activation of that name: "leaky_relu" (slope 0.01), "relu", "silu" or "" for none.

    Raises:
        ConfigError: an unknown name.
    """
    check_known("ACTIVATION", name, _ACTIVATIONS)
    return _ACTIVATIONS[name]()


def make_conv(
    in_channels: int, out_channels: int, kernel_size: int, *, norm: str, activation: str
) -> Conv2d:
    """Detectron2's Conv2d that keeps the size, with norm, activation and their initialization.

    Args:
        norm: as `detectron2.layers.get_norm`; "" for none, which adds a bias.
        activation: as `make_activation`.
    """
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=make_activation(activation),
    )
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class SeparableConv2d(nn.Module):
    """A 3x3 convolution of each channel, then a 1x1 convolution with norm and activation.

    Unlike in Detectron2's DepthwiseSeparableConv2d, the depthwise part has neither norm nor bias:
    the norm behind the 1x1 convolution would remove the effect of a bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        dilation: tuple[int, int] = (1, 1),
        norm: str,
        activation: str,
    ) -> None:
        """Args:
        in_channels, out_channels: C before and after.
        dilation: of the depthwise part, vertical and horizontal, in pixels.
        norm, activation: as `make_conv`.
        """
        super().__init__()
        self.depthwise = nn.Conv2d(
            in_channels,
            in_channels,
            3,
            padding=dilation,
            dilation=dilation,
            groups=in_channels,
            bias=False,
        )
        nn.init.kaiming_normal_(self.depthwise.weight, nonlinearity="linear")
        self.pointwise = make_conv(in_channels, out_channels, 1, norm=norm, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W); B may be 0."""
        x = self.depthwise(x)
        if x.numel() or not self.training:
            return self.pointwise(x)
        # Detectron2's Conv2d refuses an empty batch under SyncBN, which torch's SyncBN takes.
        last = self.pointwise
        x = F.conv2d(x, last.weight, last.bias)
        return last.activation(x if last.norm is None else last.norm(x))
