"""Categories of a data set: their names, kinds and colours, and how a JSON holds them."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable
from typing import Any, NamedTuple

__all__ = ["Category", "category_entries", "spare_colors"]


class Category(NamedTuple):
    """One entry of the JSON's `categories`. `id` is the dataset id; `color` is RGB in 0..255."""

    id: int
    name: str
    isthing: bool
    color: tuple[int, int, int]


def category_entries(categories: Iterable[Category]) -> list[dict[str, Any]]:
    """The `categories` of a COCO panoptic JSON."""
    return [
        {"id": c.id, "name": c.name, "isthing": int(c.isthing), "color": list(c.color)}
        for c in categories
    ]


def spare_colors(count: int) -> list[tuple[int, int, int]]:
    """Distinct colours for categories without one, RGB in 0..255."""
    colors = []
    for i in range(count):
        # Hues in steps of the golden angle stay far from all earlier ones. Saturation and value
        # alternate as well, because 20 hues alone are hard to distinguish.
        rgb = colorsys.hsv_to_rgb((i * 0.618034) % 1.0, 0.65 + 0.3 * (i % 2), 0.95 - 0.25 * (i % 3))
        colors.append((round(rgb[0] * 255), round(rgb[1] * 255), round(rgb[2] * 255)))
    return colors
