"""The grid of single masks."""

from __future__ import annotations

import numpy as np
import pytest

from panoptic_ext.errors import ConfigError
from panoptic_ext.visualization import mask_grid
from tests.tiny.results import street

RED, GREEN = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)


def cell(grid: np.ndarray, number: int, columns: int, width: int, height: int) -> np.ndarray:
    """The mask's part of a cell: 22 pixels of caption above it, 8 between cells."""
    x, y = 8 + number % columns * (width + 8), 8 + number // columns * (height + 30) + 22
    return grid[y : y + height, x : x + width]


def test_each_mask_has_its_cell_and_its_colour():
    masks = np.zeros((3, 4, 8), bool)
    masks[0, 1:3, 2:4] = masks[1, 0] = masks[2, :, 5] = True
    grid = mask_grid(
        masks, [("a", ""), ("b", ""), ("c", "9%")], [RED, GREEN, RED], columns=2, cell_width=80
    )
    assert grid.shape == (8 + 2 * (22 + 40 + 8), 8 + 2 * 88, 3) and grid.dtype == np.uint8
    for number, (mask, color) in enumerate(zip(masks, [RED, GREEN, RED], strict=True)):
        drawn = cell(grid, number, 2, 80, 40)
        whole = mask.repeat(10, axis=0).repeat(10, axis=1)
        assert (drawn[whole] == 255 * np.array(color)).all()
        around = np.zeros_like(whole)  # a line of one pixel
        for y, x in np.argwhere(whole):
            around[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = True
        assert (drawn[around & ~whole] == 255).all()
        assert (drawn[~around] == 40).all()
    assert (cell(grid, 3, 2, 80, 40) == 255).all()  # no fourth mask


def test_over_an_image_the_rest_is_dark_and_grey():
    image = np.zeros((4, 8, 3), np.uint8)
    image[:] = 200, 100, 0
    mask = np.zeros((4, 8), bool)
    mask[:, :4] = True
    drawn = cell(mask_grid([mask], [("a", "")], [GREEN], image, cell_width=80), 0, 1, 80, 40)
    np.testing.assert_allclose(drawn[0, 0], [80, 0.6 * 255 + 40, 0], atol=1)
    np.testing.assert_allclose(drawn[0, -1], [70, 70, 70], atol=1)


def test_thin_masks_of_large_images_do_not_vanish():
    mask = np.zeros((1000, 1000), bool)
    mask[:, 501] = True
    drawn = cell(mask_grid([mask], [("line", "")], [RED], cell_width=100), 0, 1, 100, 100)
    line = drawn[50, 50].astype(int)  # a tenth of the pixels that fall into this one
    assert line[0] > line[1] and drawn[50, 0, 0] == 40 and drawn[50, 49, 0] == 255


def test_long_captions_are_cut_and_empty_grids_are_a_line():
    mask = np.ones((2, 4), bool)
    for text in ("a name that has far more letters than the cell has room", ""):
        grid = mask_grid([mask], [(text, "")], [RED], cell_width=60)
        assert grid.shape == (8 + 22 + 30 + 8, 76, 3)
        assert (grid[:30, 68:] == 255).all()
        assert bool((grid[8:30] < 255).any()) == bool(text)
    assert (mask_grid([], [], []) == 255).all()
    # The name gives way, what stands behind it does not.
    shown = [mask_grid([mask], [("word" * 9, part)], [RED], cell_width=80) for part in ("8%", "9%")]
    assert (shown[0][:30] != shown[1][:30]).any()
    with pytest.raises(ConfigError, match="columns 0 and cell_width 240; expected"):
        mask_grid([mask], [("a", "")], [RED], columns=0)


def test_the_grid_of_a_result():
    grid = street().mask_grid(columns=3, cell_width=100)
    assert grid.shape == (8 + 2 * (22 + 60 + 8), 8 + 3 * 108, 3)
    assert street().filter([]).mask_grid().shape == (8 + 22 + 8, 248 + 8, 3)
