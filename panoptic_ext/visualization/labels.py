"""Where the names of segments go in a picture: each inside its own segment, or nowhere.

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

_LINE = 1.25  # height of a line of text, relative to its font
_FINE = 64  # cells that the longer side of a segment has at least while its room is measured
_COVER = 3  # a segment must have so many times the area of its text, else the text hides it


@dataclass(frozen=True)
class Wanted:
    """The name that a segment would like to have.

    Attributes:
        segment: with "id", "area" and "bbox".
        texts: the first one that fits is taken, such as "car 93%", "car", "2".
        size: the largest font.
        is_due: place it even if it stands out of the segment.
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
        half_width, half_height = self.size * _aspect(self.text) * _LINE / 2, self.size * _LINE / 2
        return (
            self.x - half_width,
            self.y - half_height,
            self.x + half_width,
            self.y + half_height,
        )


def place_labels(ids: np.ndarray, wanted: Sequence[Wanted], smallest: float) -> list[Label]:
    """Place as many names as can be read.

    A name lies wholly inside its segment, at the place where there is most room, and takes a
    third of it at most: so names overlap neither each other nor another segment. Fonts shrink to
    fit, down to `smallest`. A name that `is_due` may stand out, or stand beside its segment, but
    not over another name.

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
        by_area = (entry.segment["area"] / _COVER / aspect) ** 0.5
        size = min(entry.size, height / _LINE, by_area / _LINE)
        if size >= min(smallest, entry.size):
            return Label(entry.segment, text, x, y, size)
    return None


def _labels_outside(ids: np.ndarray, entry: Wanted, smallest: float) -> Iterator[Label]:
    """Labels on the segment's middle and on each side of that, the first text first."""
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

    With the columns squeezed by the aspect the box is a square, and the distance to the nearest
    pixel outside, by the larger of both axes, is half the side of the square around a pixel.
    """
    inside, left, top = mask
    height, width = inside.shape
    fine = max(1.0, _FINE / max(height, width / aspect))
    size = (max(1, round(width / aspect * fine)), max(1, round(height * fine)))
    squeezed = cv2.resize(inside, size, interpolation=cv2.INTER_NEAREST)
    if not squeezed.any():  # thinner than a cell
        squeezed[:] = 1
    distance = cv2.distanceTransform(np.pad(squeezed, 1), cv2.DIST_C, 3)[1:-1, 1:-1]
    rows, columns = np.nonzero(distance == distance.max())
    middle = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    x = left + (columns[middle] + 0.5) * width / size[0]
    y = top + (rows[middle] + 0.5) * height / size[1]
    cells = 2 * float(distance.max()) - 2  # half a cell of margin on each side, for rounding
    return float(x), float(y), cells * height / size[1]


def _moved_into(label: Label, width: int, height: int) -> Label:
    """The label, moved to where the picture holds all of it, or its middle."""
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
    return (font(32).getlength(text) / 32 + 0.3) / _LINE


@lru_cache(maxsize=8)
def font(size: int) -> ImageFont.FreeTypeFont:
    """The font that matplotlib writes with; `size` in pixels."""
    folder = os.path.join(matplotlib.get_data_path(), "fonts", "ttf")
    return ImageFont.truetype(os.path.join(folder, "DejaVuSans.ttf"), size)
