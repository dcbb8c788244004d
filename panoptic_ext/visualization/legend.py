"""The classes of a data set beside their colours, as strips of a picture."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from panoptic_ext.visualization.classes import class_metadata
from panoptic_ext.visualization.labels import font

__all__ = ["class_numbers", "legend"]

_SIZE = 14  # pixels, of the font and of the squares of colour
_LINE = 22  # pixels, height of a line
_GAP = 8  # pixels


def class_numbers(metadata: Any) -> dict[str, str]:
    """Class name -> its place in the data set, from "1" on."""
    return {name: str(i + 1) for i, (name, _) in enumerate(_classes(metadata))}


def legend(metadata: Any, shown: Collection[str], width: int, note: str = "") -> list[np.ndarray]:
    """Colour, number and name of classes, in as many lines as they take.

    Args:
        metadata: as `draw_panoptic`.
        shown: names of the classes that the legend is for.
        width: of the strips, pixels.
        note: a last line, or "".

    Returns:
        (22, width, 3) uint8 RGB strips, one for each line.
    """
    numbers = class_numbers(metadata)
    lines: list[ImageDraw.ImageDraw] = []
    images: list[Image.Image] = []
    x = width
    for name, color in _classes(metadata):
        if name not in shown:
            continue
        text = f"{numbers[name]} {name}"
        length = _SIZE + 4 + int(font(_SIZE).getlength(text)) + 2 * _GAP
        if x + length > width:
            images.append(Image.new("RGB", (width, _LINE), "white"))
            lines.append(ImageDraw.Draw(images[-1]))
            x = _GAP
        lines[-1].rectangle((x, 4, x + _SIZE, 4 + _SIZE), fill=color, outline=(90, 90, 90))
        lines[-1].text((x + _SIZE + 4, 3), text, fill="black", font=font(_SIZE))
        x += length
    if note:
        note_width = font(_SIZE).getlength(note) + 2 * _GAP
        size = max(1, min(_SIZE, int(_SIZE * width / note_width)))  # pictures may be narrow
        images.append(Image.new("RGB", (width, _LINE), "white"))
        ImageDraw.Draw(images[-1]).text((_GAP, 3), note, fill=(90, 90, 90), font=font(size))
    return [np.asarray(image) for image in images]


def _classes(metadata: Any) -> list[tuple[str, tuple[int, int, int]]]:
    """Name and (R, G, B) of every class, in the data set's order, each name once."""
    data = class_metadata(metadata)
    things = zip(data.thing_classes, data.thing_colors, strict=False)
    stuff = zip(data.stuff_classes, data.stuff_colors, strict=False)
    colors: dict[str, Any] = dict((*things, *stuff))
    red_green_blue = {name: (int(c[0]), int(c[1]), int(c[2])) for name, c in colors.items()}
    return list(red_green_blue.items())
