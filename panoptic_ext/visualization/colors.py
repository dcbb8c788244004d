"""Colours of segments, of their edges and of their names. A colour is (R, G, B), each 0 to 1."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

__all__ = ["BOX_OPACITY", "Color", "edge_color", "luminance", "shade", "text_color"]

Color = tuple[float, float, float]

BOX_OPACITY = 0.8  # of the black box below a name
_CONTRAST = 7.0  # of small text, to WCAG 2 (success criterion 1.4.6)
_GOLDEN = 0.618033988749895  # its multiples spread evenly over [0, 1) for any number of instances


def shade(color: Sequence[float], number: int) -> Color:
    """A shade of a class's colour for its instance `number`; that of 0 is the colour's own."""
    first = (0.5 + number * _GOLDEN) % 1.0  # 0.5: the color itself
    second = (1.0 - number * _GOLDEN * _GOLDEN) % 1.0 or 1.0
    hue, saturation, value = colorsys.rgb_to_hsv(*color)
    return colorsys.hsv_to_rgb(
        (hue + 0.16 * (first - 0.5)) % 1.0,
        min(1.0, saturation * (0.6 + 0.4 * second)),
        min(1.0, max(0.45, value) * (0.75 + 0.5 * first)),
    )


def edge_color(color: Sequence[float]) -> Color:
    """The colour of a segment's edge, a little lighter than its filling.

    The filling lets the image through, so the edge is lighter than it on a dark image and darker on
    a light one.
    """
    red, green, blue = color
    return _mixed((red, green, blue), (1.0, 1.0, 1.0), 0.15)


def text_color(color: Sequence[float]) -> Color:
    """`color`, as light as a name on its black box must be to be legible; its hue stays.

    The contrast is 7 to 1 or more, even where the box lies on white.
    """
    through = luminance((1 - BOX_OPACITY,) * 3)  # white, seen through the box
    least = _CONTRAST * (through + 0.05) - 0.05
    red, green, blue = color
    strongest = max(color)
    pure = (red / strongest, green / strongest, blue / strongest) if strongest else (1.0,) * 3
    for start, end in (((red, green, blue), pure), (pure, (1.0, 1.0, 1.0))):
        for step in range(33):
            lifted = _mixed(start, end, step / 32)
            if luminance(lifted) >= least:
                return lifted
    return (1.0, 1.0, 1.0)


def luminance(color: Sequence[float]) -> float:
    """Relative luminance of an sRGB colour as WCAG 2 defines it, 0 to 1."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _mixed(start: Color, end: Color, part: float) -> Color:
    red, green, blue = (a + (b - a) * part for a, b in zip(start, end, strict=True))
    return red, green, blue
