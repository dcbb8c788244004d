"""Masks of objects as files hold them; each is decoded when it is painted.

Shapes: H x W is the image, h x w the window, the smallest part of the image that holds the mask.

Polygons are rasterised as pycocotools does: a polygon's corners are points of the plane in which
the pixel in row y and column x is the square from (x, y) to (x + 1, y + 1). Several outlines of one
object are united.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from pycocotools import mask as coco_mask

from panoptic_ext.data.coco.rle import decode_window, run_lengths
from panoptic_ext.errors import DatasetError, EvaluationError, quoted

__all__ = ["Bitmap", "Mask", "Polygons", "RunLengths", "Window", "box_outline", "ellipse_outline"]

_LEAST_NUMBERS = 6  # of a polygon: three corners
# A polygon this many image sides outside is of another image. pycocotools would need memory in
# proportion to its length.
_MOST_SIDES = 16


class Window(NamedTuple):
    """Where a mask is, and which pixels of that part of the image belong to it.

    `mask` is (h, w) bool, `top` and `left` the row and column of its first pixel in the image.
    """

    mask: np.ndarray
    top: int
    left: int

    def part_of(self, image: np.ndarray) -> np.ndarray:
        """The view of an (H, W, ...) array that the window covers."""
        height, width = self.mask.shape
        return image[self.top : self.top + height, self.left : self.left + width]


class Mask(Protocol):
    """What an object covers; decoding may be slow, and is done once or twice for each object."""

    def window(self, size: tuple[int, int]) -> Window:
        """Decode the mask.

        Args:
            size: (H, W) of the image.

        Raises:
            DatasetError: what the file holds is no mask of an image of this size.
        """


@dataclass(frozen=True)
class Polygons:
    """Outlines and the holes in them, each a flat list x, y, x, y, ... in pixels.

    Outlines of fewer than three corners cover nothing.
    """

    outlines: Sequence[Sequence[float]]
    holes: Sequence[Sequence[float]] = ()

    def window(self, size: tuple[int, int]) -> Window:
        outer = _rasterise(self.outlines, size)
        if not outer.mask.size or not self.holes:
            return outer
        hole = _rasterise(self.holes, size)
        whole = np.zeros(size, bool)
        hole.part_of(whole)[:] = hole.mask
        return Window(outer.mask & ~outer.part_of(whole), outer.top, outer.left)


@dataclass(frozen=True)
class RunLengths:
    """COCO's run lengths: an object with size [H, W] and counts, compressed or a list."""

    segmentation: Any

    def window(self, size: tuple[int, int]) -> Window:
        try:
            lengths = run_lengths(self.segmentation, size, "its mask")
        except EvaluationError as error:
            raise DatasetError(str(error)) from error
        return Window(*decode_window(lengths, size[0]))


@dataclass(frozen=True)
class Bitmap:
    """A part of an image; what lies outside of the image is cut off.

    Attributes:
        mask: (h, w) bool.
        top, left: row and column of its first pixel in the image; they may be negative.
    """

    mask: np.ndarray
    top: int = 0
    left: int = 0

    def window(self, size: tuple[int, int]) -> Window:
        rows = slice(max(0, -self.top), max(0, size[0] - self.top))
        columns = slice(max(0, -self.left), max(0, size[1] - self.left))
        return Window(self.mask[rows, columns], max(0, self.top), max(0, self.left))


def box_outline(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    """The outline of a box with these two opposite corners."""
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def ellipse_outline(
    x: float, y: float, radius_x: float, radius_y: float, *, turn: float = 0.0
) -> list[float]:
    """An ellipse as a polygon whose corners are at most two pixels apart.

    Args:
        x, y: its centre.
        radius_x, radius_y: half of its axes.
        turn: angle of the first axis in radians, from x towards y.
    """
    count = max(16, min(720, math.ceil(math.pi * max(abs(radius_x), abs(radius_y)))))
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    along, across = radius_x * np.cos(angles), radius_y * np.sin(angles)
    points = np.stack(
        [
            x + along * np.cos(turn) - across * np.sin(turn),
            y + along * np.sin(turn) + across * np.cos(turn),
        ],
        axis=1,
    )
    return points.reshape(-1).tolist()


def _rasterise(outlines: Iterable[Any], size: tuple[int, int]) -> Window:
    usable = [numbers for numbers in (_checked(o, size) for o in outlines) if numbers]
    if not usable:
        return Window(np.zeros((0, 0), bool), 0, 0)
    united = coco_mask.merge(coco_mask.frPyObjects(usable, *size))
    return Window(*decode_window(run_lengths(united, size, "its polygons"), size[0]))


def _checked(outline: Any, size: tuple[int, int]) -> list[float]:
    """The numbers of an outline; [] for one of fewer than three corners."""
    try:
        numbers = [float(number) for number in outline]
    except (TypeError, ValueError):
        numbers = [math.nan]
    if len(numbers) % 2 or not all(map(math.isfinite, numbers)):
        raise DatasetError(
            f"its outline is {quoted(outline)}, expected an even number of coordinates x, y in "
            "pixels; draw it again"
        )
    if len(numbers) < _LEAST_NUMBERS:
        return []
    most = _MOST_SIDES * max(size)
    if max(map(abs, numbers)) > most:
        raise DatasetError(
            f"its outline has the coordinate {max(numbers, key=abs):g}, far outside of its image, "
            f"{size[0]} x {size[1]} pixels (height x width); it may be of another one"
        )
    return numbers
