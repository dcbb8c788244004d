"""Layer norm over the channels of a feature map."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["LayerNorm2d"]


class LayerNorm2d(nn.LayerNorm):
    """Normalise each pixel of a feature map over its channels, as Detectron2's norm "LN" does.

    Detectron2 v0.6 has no such norm, and timm, which has one, is optional.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        """Args:
        channels: C of the feature map.
        eps: added to the variance.
        """
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), in channels_last layout."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
