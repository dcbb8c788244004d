"""Segments painted over an image: every class alike, whatever the shape of its segments.

Shapes: H x W the image, h x w the picture, N segments.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from panoptic_ext.visualization.colors import Color, edge_color

__all__ = ["paint_segments"]

_LINE = 900  # pixels of the picture's longer side that make an edge one pixel wider


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
    """Fill segments, and draw thin edges inside of those that have one.

    Args:
        image: (H, W, 3) uint8.
        ids: (H, W) integers; pixels of no segment stay as they are.
        segment_ids: N distinct ones.
        colors: N, of the fillings; an edge is a little lighter.
        has_edge: N; where False, a segment ends without a line.
        alpha: opacity of the filling, 0 to 1.
        size: (h, w), to which the nearest pixels are taken.

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
    edges = _edges(places, 1 + max(size) // _LINE) & np.array([False, *has_edge])[places]
    table = 255 * np.array([(0, 0, 0), *map(edge_color, colors)], np.float32)
    picture[edges] = table[places[edges]].round().astype(np.uint8)
    return picture


def _places(ids: np.ndarray, segment_ids: Sequence[int]) -> np.ndarray:
    """(H, W) int32: 1 + the place in `segment_ids` of each pixel's id, 0 where it is not there."""
    values, inverse = np.unique(ids, return_inverse=True)
    place_of = {value: number + 1 for number, value in enumerate(segment_ids)}
    places = np.array([place_of.get(value, 0) for value in values.tolist()], np.int32)
    return places[inverse.reshape(ids.shape)]


def _edges(places: np.ndarray, width: int) -> np.ndarray:
    """(h, w) bool: pixels of which a neighbour, up to `width` pixels away, is another segment's."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    as_float = places.astype(np.float32)  # exact, for no image has 2^24 segments
    return np.asarray(cv2.dilate(as_float, kernel) != cv2.erode(as_float, kernel))


def _blend(below: np.ndarray, above: np.ndarray, alpha: float) -> np.ndarray:
    return (below * np.float32(1 - alpha) + above * np.float32(alpha) + 0.5).astype(np.uint8)
