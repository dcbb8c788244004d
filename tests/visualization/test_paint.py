"""Segments painted over an image: fillings, edges and sizes."""

from __future__ import annotations

import numpy as np
import pytest

from panoptic_ext.visualization.colors import edge_color
from panoptic_ext.visualization.paint import paint_segments

RED, GREEN = (1.0, 0.0, 0.0), (0.0, 0.5, 0.0)


def paint(ids, has_edge, alpha=0.5, size=None):
    image = np.full((*ids.shape, 3), 100, np.uint8)
    size = size or ids.shape
    return paint_segments(image, ids, [9, 4], [RED, GREEN], has_edge, alpha=alpha, size=size)


def square_in_a_field(hole):
    ids = np.full((30, 40), 4)
    ids[:, 30:] = 77  # of no segment
    ids[5:25, 5:25] = 9
    if hole:
        ids[12:18, 12:18] = 77
    return ids


@pytest.mark.parametrize("hole", [False, True])
def test_stuff_has_no_outline_and_a_thing_a_thin_one_with_holes_or_without(hole):
    """Stuff had a thick white outline where Detectron2 found no hole in it, and none elsewhere."""
    ids = square_in_a_field(hole)
    picture = paint(ids, [True, False])
    assert (picture[ids == 4] == (50, 114, 50)).all()
    assert (picture[ids == 77] == 100).all()
    edge = (picture == np.round(255 * np.array(edge_color(RED)))).all(axis=2)
    inside = ids == 9
    assert edge[5, 5:25].all() and edge[5:25, 24].all() and not edge[~inside].any()
    assert (picture[inside & ~edge] == (178, 50, 50)).all()
    assert edge.sum() == 76 + (24 if hole else 0)


def test_things_that_touch_have_an_edge_each_and_the_border_of_the_picture_is_none():
    ids = np.full((20, 20), 9)
    ids[:, 10:] = 4
    picture = paint(ids, [True, True])
    filling = (picture == (178, 50, 50)).all(axis=2) | (picture == (50, 114, 50)).all(axis=2)
    assert (filling == ~np.isin(np.arange(20), [9, 10])).all()


def test_opacity_and_size():
    ids = square_in_a_field(hole=False)
    assert (paint(ids, [False, False], alpha=0) == 100).all()
    assert (paint(ids, [False, False], alpha=1)[ids == 9] == (255, 0, 0)).all()
    large = paint(ids, [False, False], size=(90, 120))
    assert (large == np.kron(paint(ids, [False, False]), np.ones((3, 3, 1)))).all()
    assert paint(ids, [True, True], size=(7, 9)).shape == (7, 9, 3)
    wide = paint(ids, [True, False], size=(60, 1800))  # an edge of three pixels
    edge = (wide[30] == np.round(255 * np.array(edge_color(RED)))).all(axis=1)
    assert edge.sum() == 6
