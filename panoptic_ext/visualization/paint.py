"""Paint segments over an image.

Shapes: H x W the image, h x w the picture, N segments.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from panoptic_ext.visualization.colors import Color, edge_color

__all__ = ["paint_segments"]

_PIXELS_PER_EDGE_PIXEL = 900  # of the picture's longer side, for each further pixel of an edge


def paint_segments(
    image: np.ndarray,
    ids: np.ndarray,
    segment_ids: Sequence[int],
    colors: Sequence[Color],
    has_edge: Sequence[bool],
    *,
    alpha: float,
    size: tuple[int, int],
) -> np.ndarray:
    """Fill segments, and draw a thin edge inside those with `has_edge`.

    Args:
        image: (H, W, 3) uint8.
        ids: (H, W) integers; pixels of no segment stay as they are.
        segment_ids: N distinct ones.
        colors: N, of the fillings; an edge is a little lighter.
        has_edge: N bools.
        alpha: opacity of the filling, 0 to 1.
        size: (h, w); image and ids are resized by nearest neighbour.

    Returns:
        (h, w, 3) uint8.
    """
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(size, image.shape[:2], strict=True)
    )
    picture = image[rows[:, None], columns]
    places = _places(ids, segment_ids)[rows[:, None], columns]
    table = 255 * np.array([(0, 0, 0), *colors], np.float32)
    filled = places > 0
    picture[filled] = _blend(picture[filled], table[places[filled]], alpha)
    edges = (
        _edges(places, 1 + max(size) // _PIXELS_PER_EDGE_PIXEL)
        & np.array([False, *has_edge])[places]
    )
    table = 255 * np.array([(0, 0, 0), *map(edge_color, colors)], np.float32)
    picture[edges] = table[places[edges]].round().astype(np.uint8)
    return picture


def _places(ids: np.ndarray, segment_ids: Sequence[int]) -> np.ndarray:
    """(H, W) int32: 1 + the position of each pixel's id in `segment_ids`, 0 for other ids."""
    values, inverse = np.unique(ids, return_inverse=True)
    place_of = {value: number + 1 for number, value in enumerate(segment_ids)}
    places = np.array([place_of.get(value, 0) for value in values.tolist()], np.int32)
    return places[inverse.reshape(ids.shape)]


def _edges(places: np.ndarray, width: int) -> np.ndarray:
    """(h, w) bool: pixels with another segment's pixel at most `width` pixels away."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    # OpenCV dilates no int32. float32 is exact, because no image has 2^24 segments.
    as_float = places.astype(np.float32)
    return np.asarray(cv2.dilate(as_float, kernel) != cv2.erode(as_float, kernel))


def _blend(below: np.ndarray, above: np.ndarray, alpha: float) -> np.ndarray:
    return (below * np.float32(1 - alpha) + above * np.float32(alpha) + 0.5).astype(np.uint8)
