"""Colours of segments, of their edges and of their names. A colour is (R, G, B), each 0 to 1."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

__all__ = ["BOX_OPACITY", "Color", "edge_color", "luminance", "shade", "text_color"]

Color = tuple[float, float, float]

BOX_OPACITY = 0.8  # of the black box below a name
_TEXT_CONTRAST = 7.0  # of small text, by WCAG 2 (success criterion 1.4.6)
# Multiples of the golden ratio, modulo 1, spread evenly over [0, 1) for any number of instances.
_GOLDEN_RATIO = 0.618033988749895


def shade(color: Sequence[float], number: int) -> Color:
    """A shade of a class's colour for its instance `number`; number 0 keeps hue and saturation."""
    # Hue and value follow one sequence, saturation another, so that neighbouring numbers differ in
    # all three. A first of 0.5 and a second of 1 leave hue and saturation as they are.
    first = (0.5 + number * _GOLDEN_RATIO) % 1.0
    second = (1.0 - number * _GOLDEN_RATIO * _GOLDEN_RATIO) % 1.0 or 1.0
    hue, saturation, value = colorsys.rgb_to_hsv(*color)
    return colorsys.hsv_to_rgb(
        (hue + 0.16 * (first - 0.5)) % 1.0,
        min(1.0, saturation * (0.6 + 0.4 * second)),
        min(1.0, max(0.45, value) * (0.75 + 0.5 * first)),
    )


def edge_color(color: Sequence[float]) -> Color:
    """The colour of a segment's edge: the class's colour with 15% white.

    The edge is opaque and the filling is not. The edge therefore looks lighter than the filling on
    a dark image, and darker on a light one.
    """
    red, green, blue = color
    return _mixed((red, green, blue), (1.0, 1.0, 1.0), 0.15)


def text_color(color: Sequence[float]) -> Color:
    """Lighten a colour until it is legible on the black box below a name.

    The contrast is 7 to 1 or more, even where the box lies on white. The hue is kept as long as
    that is possible.
    """
    white_through_box = luminance((1 - BOX_OPACITY,) * 3)
    # WCAG 2: contrast = (lighter luminance + 0.05) / (darker luminance + 0.05).
    least = _TEXT_CONTRAST * (white_through_box + 0.05) - 0.05
    red, green, blue = color
    strongest = max(color)
    pure = (red / strongest, green / strongest, blue / strongest) if strongest else (1.0,) * 3
    # First as bright as the hue allows, then towards white, which costs saturation.
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
