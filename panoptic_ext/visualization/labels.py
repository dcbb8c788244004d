"""Place the names of segments in a picture, each inside its own segment where it fits.

Lengths are pixels of the image, H x W; the size of a text is the height of its font.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import cv2
import matplotlib
import numpy as np
from PIL import ImageFont

__all__ = ["Label", "Wanted", "font", "place_labels"]

_LINE_HEIGHT = 1.25  # height of a line of text, relative to its font
_MEASURED_CELLS = 64  # cells at least that the longer side of a segment is measured in
_AREA_PER_TEXT = 3  # area of a segment over that of its text, at least: the text must not hide it


@dataclass(frozen=True)
class Wanted:
    """The name to place for a segment.

    Attributes:
        segment: with "id", "area" and "bbox".
        texts: the first one that fits is taken, such as "car 93%", "car", "2".
        size: the largest font.
        is_due: place the name even where it does not fit into the segment.
    """

    segment: dict[str, Any]
    texts: Sequence[str]
    size: float
    is_due: bool = False


@dataclass(frozen=True)
class Label:
    """A text and the place of its centre."""

    segment: dict[str, Any]
    text: str
    x: float
    y: float
    size: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1."""
        half_width, half_height = (
            self.size * _aspect(self.text) * _LINE_HEIGHT / 2,
            self.size * _LINE_HEIGHT / 2,
        )
        return (
            self.x - half_width,
            self.y - half_height,
            self.x + half_width,
            self.y + half_height,
        )


def place_labels(ids: np.ndarray, wanted: Sequence[Wanted], smallest: float) -> list[Label]:
    """Place as many names as can be read.

    A name lies wholly inside its segment, where there is most room, and covers at most a third of
    it. Names therefore overlap neither each other nor another segment. Fonts shrink to fit, down to
    `smallest`. A name that `is_due` may reach out of its segment or lie beside it, but it does not
    overlap another name.

    Args:
        ids: (H, W) segment ids.
        wanted: in any order; a segment without a pixel gets no name.
        smallest: size of the smallest font that can be read.

    Returns:
        The labels of the segments that got one.
    """
    labels, waiting = [], []
    for entry in wanted:
        if not entry.segment["area"]:
            continue
        label = _label_inside(ids, entry, smallest)
        if label:
            labels.append(label)
        elif entry.is_due:
            waiting.append(entry)
    for entry in waiting:
        for label in _labels_outside(ids, entry, smallest):
            if not any(_overlap(label.box, other.box) for other in labels):
                labels.append(label)
                break
    return labels


def _label_inside(ids: np.ndarray, entry: Wanted, smallest: float) -> Label | None:
    mask = _mask(ids, entry.segment)
    for text in entry.texts:
        aspect = _aspect(text)
        x, y, height = _roomiest(mask, aspect)
        by_area = (entry.segment["area"] / _AREA_PER_TEXT / aspect) ** 0.5
        size = min(entry.size, height / _LINE_HEIGHT, by_area / _LINE_HEIGHT)
        if size >= min(smallest, entry.size):
            return Label(entry.segment, text, x, y, size)
    return None


def _labels_outside(ids: np.ndarray, entry: Wanted, smallest: float) -> Iterator[Label]:
    """Yield labels on the segment's middle and above, below, left and right of it, text by text."""
    for text in entry.texts:
        x, y, _ = _roomiest(_mask(ids, entry.segment), _aspect(text))
        middle = Label(entry.segment, text, x, y, min(entry.size, smallest))
        x0, y0, x1, y1 = middle.box
        for right, down in ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0)):
            moved = replace(middle, x=x + right * (x1 - x0) / 2, y=y + down * (y1 - y0))
            yield _moved_into(moved, ids.shape[1], ids.shape[0])


def _mask(ids: np.ndarray, segment: dict[str, Any]) -> tuple[np.ndarray, int, int]:
    """The segment within its box, (h, w) uint8, and the x and y of the box."""
    x, y, width, height = segment["bbox"]
    inside = ids[y : y + height, x : x + width] == segment["id"]
    return inside.astype(np.uint8), x, y


def _roomiest(mask: tuple[np.ndarray, int, int], aspect: float) -> tuple[float, float, float]:
    """Centre (x, y) and height of the largest box of an aspect (width / height) in a segment.

    The height is 0 where no box has room; the centre is then a pixel near the segment's middle.
    """
    inside, left, top = mask
    height, width = inside.shape
    fine = max(1.0, _MEASURED_CELLS / max(height, width / aspect))
    rows, columns = max(1, round(height * fine)), max(1, round(width / aspect * fine))
    # Cells are wider than high by the aspect, so that the box is a square of cells. The distance to
    # the nearest cell outside, by the larger of both axes, gives the square around a cell.
    free = np.pad(_free_cells(inside, rows, columns), 1)
    distance = cv2.distanceTransform(free, cv2.DIST_C, 3)[1:-1, 1:-1]
    cells = max(0.0, 2 * float(distance.max()) - 1)
    if not cells:
        distance, rows, columns = inside, height, width
    best_rows, best_columns = np.nonzero(distance == distance.max())
    middle = np.argmin(
        (best_rows - best_rows.mean()) ** 2 + (best_columns - best_columns.mean()) ** 2
    )
    x = left + (best_columns[middle] + 0.5) * width / columns
    y = top + (best_rows[middle] + 0.5) * height / rows
    # The aspect of a cell is rounded with the number of columns, so that both sides count. A
    # millionth less keeps the box inside after the rounding of floats.
    return float(x), float(y), cells * min(height / rows, width / columns / aspect) * (1 - 1e-6)


def _free_cells(inside: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """(rows, columns) uint8 for a grid over a mask: 1 where all pixels that a cell meets are 1.

    Args:
        inside: (H, W) uint8 of 0 and 1.
        rows, columns: of the grid; a cell may be smaller or larger than a pixel.
    """
    # cv2.resize with INTER_NEAREST samples one pixel for each cell. It missed objects narrower than
    # a cell, so that names were written over them.
    (top, bottom), (left, right) = (
        (np.arange(count) * length // count, -(-np.arange(1, count + 1) * length // count))
        for count, length in zip((rows, columns), inside.shape, strict=True)
    )
    sums = cv2.integral(1 - inside)  # [y, x]: pixels outside the mask in rows < y, columns < x
    sums_of_columns = sums[:, right] - sums[:, left]
    pixels_outside = sums_of_columns[bottom] - sums_of_columns[top]
    return (pixels_outside == 0).astype(np.uint8)


def _moved_into(label: Label, width: int, height: int) -> Label:
    """Move a label into the picture; one that is larger than the picture is centred."""
    x0, y0, x1, y1 = label.box
    half_width, half_height = (x1 - x0) / 2, (y1 - y0) / 2
    x = min(max(label.x, half_width), max(width - half_width, width / 2))
    y = min(max(label.y, half_height), max(height - half_height, height / 2))
    return Label(label.segment, label.text, x, y, label.size)


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@lru_cache(maxsize=1024)
def _aspect(text: str) -> float:
    """Width of a line of text relative to its height, a small margin included."""
    return (font(32).getlength(text) / 32 + 0.3) / _LINE_HEIGHT


@lru_cache(maxsize=8)
def font(size: int) -> ImageFont.FreeTypeFont:
    """The font that matplotlib writes with; `size` in pixels."""
    folder = os.path.join(matplotlib.get_data_path(), "fonts", "ttf")
    return ImageFont.truetype(os.path.join(folder, "DejaVuSans.ttf"), size)
