"""Sine position embedding of a map (Vaswani et al., 2017; in two dimensions as in DETR)."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["sine_position_embedding"]

TEMPERATURE = 10000.0
EPSILON = 1e-6


def sine_position_embedding(
    height: int, width: int, channels: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Embed each position of a `height` x `width` map: half of the channels for y, half for x.

    A position counts from 1 and is scaled so that the last one of an axis is 2 pi. Channel pairs
    (2i, 2i + 1) of an axis are sine and cosine of position / 10000 ** (2i / (channels / 2)).

    Args:
        height, width: size of the map in positions.
        channels: of the result; a multiple of 4.
        device: of the result. The embeddings of the last sizes are cached there.

    Returns:
        (1, channels, height, width) float32. Shared with other callers: do not write to it.

    Raises:
        ValueError: `channels` is no multiple of 4.
    """
    if channels % 4:
        raise ValueError(f"a sine embedding needs a multiple of 4 channels, got {channels}")
    if torch.compiler.is_compiling():
        return _embedding(height, width, channels, torch.device(device))
    return _cached_embedding(height, width, channels, torch.device(device))


@lru_cache(maxsize=32)
def _cached_embedding(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    # A tensor made in inference mode could not take part in a later training step.
    with torch.inference_mode(False), torch.no_grad():
        return _embedding(height, width, channels, device)


def _embedding(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    half = channels // 2
    along_y = _axis(height, half, device).t()[:, :, None].expand(-1, -1, width)
    along_x = _axis(width, half, device).t()[:, None, :].expand(-1, height, -1)
    return torch.cat((along_y, along_x))[None]


def _axis(length: int, channels: int, device: torch.device) -> Tensor:
    """(length, channels) float32."""
    place = torch.arange(1, length + 1, dtype=torch.float32, device=device)
    place = place / (length + EPSILON) * (2 * math.pi)
    pair = torch.arange(channels // 2, dtype=torch.float32, device=device)
    angle = place[:, None] / TEMPERATURE ** (2 * pair / channels)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)
