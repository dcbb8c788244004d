"""A grid of single masks, each with a caption.

Shapes: N masks of an image of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from panoptic_ext.errors import ConfigError
from panoptic_ext.visualization.colors import Color
from panoptic_ext.visualization.labels import font

__all__ = ["mask_grid"]

_FONT_SIZE = 14  # pixels
_CAPTION_HEIGHT = 22  # pixels
_GAP = 8  # pixels between cells and around them
_DARKEST, _DARKENED = 30, 0.4  # outside of the mask: grey of black, brightness relative to it
_OPACITY = 0.6  # of the mask's colour over an image
_PLAIN = 40  # grey outside of the mask where there is no image
_OUTLINE = 255  # grey of a line around the mask, so that dark colours stand out, too


def mask_grid(
    masks: Iterable[np.ndarray],
    captions: Sequence[tuple[str, str]],
    colors: Sequence[Color],
    image: np.ndarray | None = None,
    *,
    columns: int = 5,
    cell_width: int = 240,
) -> np.ndarray:
    """Draw each mask in a cell of its own, below its caption.

    Args:
        masks: N times (H, W) bool; asked for one by one, so that not all need be in memory.
        captions: N times a name and what stands behind it, such as "93%" or "". A name that is too
            long for its cell is cut.
        colors: N, of the masks.
        image: (H, W, 3) uint8 RGB, dark and grey outside of the mask. None: a plain background.
        columns: cells in a row; fewer where there are fewer masks.
        cell_width: pixels.

    Returns:
        (h, w, 3) uint8 RGB on white. Without a mask it is one empty line.

    Raises:
        ConfigError: `columns` or `cell_width` is too small.
    """
    if columns < 1 or cell_width < 16:
        raise ConfigError(
            f"columns {columns} and cell_width {cell_width}; expected 1 or more, and 16 or more"
        )
    columns = max(1, min(columns, len(captions)))
    backdrop = None if image is None else _resized(image, *_cell_size(image, cell_width))
    cells = [
        _cell(mask, caption, color, backdrop, cell_width)
        for mask, caption, color in zip(masks, captions, colors, strict=True)
    ]
    cell_height = cells[0].shape[0] if cells else _CAPTION_HEIGHT
    rows = -(-len(cells) // columns) or 1
    height, width = (
        _GAP + rows * (cell_height + _GAP),
        _GAP + columns * (cell_width + _GAP),
    )
    grid = np.full((height, width, 3), 255, np.uint8)
    for number, cell in enumerate(cells):
        y = _GAP + number // columns * (cell_height + _GAP)
        x = _GAP + number % columns * (cell_width + _GAP)
        grid[y : y + cell_height, x : x + cell_width] = cell
    return grid


def _cell_size(array: np.ndarray, width: int) -> tuple[int, int]:
    """Width and height of a cell's picture."""
    return width, max(1, round(array.shape[0] * width / array.shape[1]))


def _cell(
    mask: np.ndarray,
    caption: tuple[str, str],
    color: Color,
    backdrop: np.ndarray | None,
    width: int,
) -> np.ndarray:
    """(caption + h, width, 3) uint8: the caption and the mask, over an image of (h, width, 3)."""
    width, height = _cell_size(mask, width)
    covered = _resized(mask.astype(np.uint8) * 255, width, height)[:, :, None] / 255
    inside = np.broadcast_to(255 * np.array(color), (height, width, 3))
    outside: np.ndarray = np.full((height, width, 3), float(_PLAIN))
    if backdrop is not None:
        inside = _OPACITY * inside + (1 - _OPACITY) * backdrop
        grey = backdrop.mean(axis=2, keepdims=True)
        outside = np.repeat(_DARKEST + _DARKENED * grey, 3, axis=2)
    picture = covered * inside + (1 - covered) * outside
    touched = (covered[:, :, 0] > 0).astype(np.uint8)
    picture[cv2.dilate(touched, np.ones((3, 3), np.uint8)) > touched] = _OUTLINE
    return np.concatenate([_caption(caption, width), (picture + 0.5).astype(np.uint8)])


def _resized(array: np.ndarray, width: int, height: int) -> np.ndarray:
    # Box averages what falls into a pixel, so that thin segments of a large image do not vanish; a
    # small image keeps its pixels as squares.
    shrinks = width * height < array.shape[0] * array.shape[1]
    how = Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(array).resize((width, height), how))


def _caption(caption: tuple[str, str], width: int) -> np.ndarray:
    image = Image.new("RGB", (width, _CAPTION_HEIGHT), "white")
    letters, (name, behind) = font(_FONT_SIZE), caption
    text = f"{name} {behind}".rstrip()
    while name and letters.getlength(text) > width:
        name = name[:-1]
        text = f"{name}… {behind}".rstrip()
    ImageDraw.Draw(image).text((0, 2), text, fill="black", font=letters)
    return np.asarray(image)
