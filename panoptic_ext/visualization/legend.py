"""The classes of a data set beside their colours, as strips of a picture."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from panoptic_ext.visualization.classes import class_metadata
from panoptic_ext.visualization.labels import font

__all__ = ["class_numbers", "legend"]

_FONT_SIZE = 14  # pixels; also the side of the squares of colour
_LINE_HEIGHT = 22  # pixels
_GAP = 8  # pixels


def class_numbers(metadata: Any) -> dict[str, str]:
    """Map each class name to its position in the data set, as text from "1" on."""
    return {name: str(i + 1) for i, (name, _) in enumerate(_classes(metadata))}


def legend(metadata: Any, shown: Collection[str], width: int, note: str = "") -> list[np.ndarray]:
    """Draw colour, number and name of classes, in as many lines as they need.

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
        length = _FONT_SIZE + 4 + int(font(_FONT_SIZE).getlength(text)) + 2 * _GAP
        if x + length > width:
            images.append(Image.new("RGB", (width, _LINE_HEIGHT), "white"))
            lines.append(ImageDraw.Draw(images[-1]))
            x = _GAP
        lines[-1].rectangle(
            (x, 4, x + _FONT_SIZE, 4 + _FONT_SIZE), fill=color, outline=(90, 90, 90)
        )
        lines[-1].text((x + _FONT_SIZE + 4, 3), text, fill="black", font=font(_FONT_SIZE))
        x += length
    if note:
        note_width = font(_FONT_SIZE).getlength(note) + 2 * _GAP
        size = max(
            1, min(_FONT_SIZE, int(_FONT_SIZE * width / note_width))
        )  # pictures may be narrow
        images.append(Image.new("RGB", (width, _LINE_HEIGHT), "white"))
        ImageDraw.Draw(images[-1]).text((_GAP, 3), note, fill=(90, 90, 90), font=font(size))
    return [np.asarray(image) for image in images]


def _classes(metadata: Any) -> list[tuple[str, tuple[int, int, int]]]:
    """Name and (R, G, B) of each class once, in the data set's order."""
    data = class_metadata(metadata)
    things = zip(data.thing_classes, data.thing_colors, strict=False)
    stuff = zip(data.stuff_classes, data.stuff_colors, strict=False)
    # Some data sets of Detectron2 list things and stuff apart; panoptic_ext has all in both.
    colors: dict[str, Any] = dict((*things, *stuff))
    red_green_blue = {name: (int(c[0]), int(c[1]), int(c[2])) for name, c in colors.items()}
    return list(red_green_blue.items())
