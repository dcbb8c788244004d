"""Colours of segments and names: legible, of the class's hue, and apart from one another."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from panoptic_ext.visualization.colors import BOX_OPACITY, luminance, shade, text_color


@pytest.mark.parametrize(
    "color", [(0, 0, 142), (70, 70, 70), (0, 0, 0), (220, 20, 60), (255, 255, 0), (1, 0, 90)]
)
@pytest.mark.parametrize("behind", [0, 255])
def test_a_name_is_legible_on_its_box_and_has_the_hue_of_its_class(color, behind):
    """The name of a car, (0, 0, 142), could not be read."""
    text = text_color([c / 255 for c in color])
    box = luminance([(1 - BOX_OPACITY) * behind / 255] * 3)
    assert (luminance(text) + 0.05) / (box + 0.05) >= 7
    if max(color) != min(color):
        hue = colorsys.rgb_to_hsv(*color)[0]
        assert colorsys.rgb_to_hsv(*text)[0] == pytest.approx(hue, abs=0.01)
        assert max(text) - min(text) > 0.1


def test_a_light_colour_stays_as_it_is():
    assert text_color((1.0, 1.0, 0.0)) == (1.0, 1.0, 0.0)
    assert luminance((1.0, 1.0, 1.0)) == pytest.approx(1) and luminance((0.0, 0.0, 0.0)) == 0


def test_shades_differ_and_the_first_is_the_colour():
    assert shade((0.8, 0.2, 0.4), 0) == pytest.approx((0.8, 0.2, 0.4))
    shades = [shade((0.8, 0.2, 0.4), number) for number in range(200)]
    assert len(np.unique(np.round(shades, 3), axis=0)) == 200
