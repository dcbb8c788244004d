"""Masks as files hold them."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from panoptic_ext.data.convert.masks import (
    Bitmap,
    Mask,
    Polygons,
    RunLengths,
    box_outline,
    ellipse_outline,
)
from panoptic_ext.errors import DatasetError
from tests.data.convert.cases import box

SIZE = (8, 10)


def dense(mask: Mask, size: tuple[int, int] = SIZE) -> np.ndarray:
    whole = np.zeros(size, bool)
    window = mask.window(size)
    window.part_of(whole)[:] = window.mask
    return whole


def test_polygons_are_those_of_pycocotools() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        outlines = [rng.uniform(-2, 11, 2 * rng.integers(3, 7)).tolist() for _ in range(2)]
        expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(outlines, *SIZE)))
        assert np.array_equal(dense(Polygons(outlines)), expected.astype(bool))


def test_a_box_of_whole_numbers_covers_its_pixels_and_a_hole_is_cut_out() -> None:
    expected = np.zeros(SIZE, bool)
    expected[1:6, 2:8] = True
    assert np.array_equal(dense(Polygons([box(2, 1, 8, 6)])), expected)
    assert np.array_equal(dense(Polygons([box_outline(8, 6, 2, 1)])), expected)
    expected[3:5, 4:6] = False
    assert np.array_equal(dense(Polygons([box(2, 1, 8, 6)], holes=[box(4, 3, 6, 5)])), expected)


def test_two_corners_are_no_polygon_and_cover_nothing() -> None:
    assert not dense(Polygons([[1, 1, 5, 5]])).any()  # pycocotools would take it for a box
    assert not dense(Polygons([])).any()
    assert dense(Polygons([[1, 1], box(2, 1, 8, 6)])).sum() == 30


@pytest.mark.parametrize(
    ("outline", "words"),
    [
        ([1, 2, 3, 4, 5], "an even number of coordinates"),
        ([1, 2, 3, 4, 5, float("nan")], "an even number"),
        ([1, 2, 3, 4, "a", 6], "an even number"),
        ([0, 0, 1e9, 0, 1e9, 1e9], "far outside of its image, 8 x 10"),
    ],
)
def test_outlines_that_are_none(outline: list[float], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        dense(Polygons([outline]))


def test_run_lengths_compressed_or_not() -> None:
    expected = np.zeros(SIZE, bool)
    expected[2:5, 3:4] = True
    runs = {"size": list(SIZE), "counts": [26, 3, 51]}
    assert np.array_equal(dense(RunLengths(runs)), expected)
    packed = coco_mask.encode(np.asfortranarray(expected.astype(np.uint8)))
    packed["counts"] = packed["counts"].decode()
    assert np.array_equal(dense(RunLengths(packed)), expected)
    with pytest.raises(DatasetError, match=r"a mask of size .*expected"):
        dense(RunLengths({**runs, "size": [10, 8]}))


def test_a_bitmap_is_cut_off_at_the_image() -> None:
    assert dense(Bitmap(np.ones((4, 4), bool), -2, -1)).sum() == 2 * 3
    assert dense(Bitmap(np.ones((4, 4), bool), 6, 8)).sum() == 2 * 2
    assert not dense(Bitmap(np.ones((2, 2), bool), 20, 20)).any()


def test_an_ellipse_is_as_large_as_it_says() -> None:
    area = dense(Polygons([ellipse_outline(50, 40, 30, 20, turn=0.5)]), (80, 100)).sum()
    assert abs(area - np.pi * 30 * 20) < 20
