"""Normalise and pad the images of a batch.

Shapes: B images of h x w (each its own), H x W the padded size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import ImageList
from torch import Tensor
from torch.nn import functional as F

from panoptic_ext.errors import ConfigError

__all__ = ["normalised_batch", "wants_channels_last"]


def wants_channels_last(cfg: Any) -> bool:
    """Whether MODEL.CHANNELS_LAST, or without it MODEL.DEVICE, asks for that layout."""
    if cfg.MODEL.CHANNELS_LAST is not None:
        return cfg.MODEL.CHANNELS_LAST
    return torch.device(cfg.MODEL.DEVICE).type == "cpu"


def normalised_batch(
    images: Sequence[Tensor],
    *,
    pixel_mean: Tensor,
    pixel_std: Tensor,
    size_divisibility: int,
    pad_black: bool = False,
    square: int = 0,
    channels_last: bool = False,
    least_size: tuple[int, int] = (0, 0),
) -> ImageList:
    """Subtract the mean, divide by the deviation, and pad on the right and below to one size.

    Args:
        images: B tensors (C, h, w), grey levels, on one device.
        pixel_mean, pixel_std: (C, 1, 1), grey levels.
        size_divisibility: H and W are multiples of this many pixels; 0: no such rule.
        pad_black: pad with a grey level of 0 (INPUT.PAD_VALUE "black"), which is -mean / deviation
            after normalisation; otherwise with the mean, which is 0.
        channels_last: memory layout of the result. Convolutions keep it, so that a whole model runs
            in it: on a CPU, depthwise and 1 x 1 convolutions are several times faster.
        square: if it is not 0, H and W are this many pixels, rounded up to `size_divisibility`.
        least_size: H and W are at least so many pixels, rounded up to `size_divisibility`.

    Returns:
        (B, C, H, W) float32, and the sizes without padding.

    Raises:
        ConfigError: an image is larger than the square.
    """
    if pad_black:
        batch = _padded(images, size_divisibility, square, least_size)
        batch.tensor = (batch.tensor - pixel_mean) / pixel_std
    else:
        normalised = [(image - pixel_mean) / pixel_std for image in images]
        batch = _padded(normalised, size_divisibility, square, least_size)
    if channels_last:
        batch.tensor = batch.tensor.contiguous(memory_format=torch.channels_last)
    return batch


def _padded(
    images: Sequence[Tensor], size_divisibility: int, square: int, least_size: tuple[int, int]
) -> ImageList:
    """A batch padded with 0, without the argument of Detectron2 main that makes it a square."""
    batch = ImageList.from_tensors(list(images), size_divisibility)
    if square:
        _check_fits(images, square)
        least_size = (square, square)
    divisor = max(1, size_divisibility)
    height, width = batch.tensor.shape[-2:]
    below, right = (
        max(-(-least // divisor) * divisor - side, 0)
        for least, side in zip(least_size, (height, width), strict=True)
    )
    if below or right:
        batch.tensor = F.pad(batch.tensor, (0, right, 0, below))
    return batch


def _check_fits(images: Sequence[Tensor], square: int) -> None:
    for image in images:
        height, width = image.shape[-2:]
        if max(height, width) > square:
            raise ConfigError(
                f"INPUT.PAD_TO_SQUARE pads to {square} x {square} (INPUT.IMAGE_SIZE), but an image "
                f"of {height} x {width} (height x width) came; set INPUT.TEST_RESIZE "
                "'longest_side', or resize images before they are given to the model"
            )
