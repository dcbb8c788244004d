"""Resizing in testing, against the formulas written out and against Detectron2's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import transforms as T
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.data.resizing import ResizeShortestEdge, ResizeSide, resize_in_testing

SIDES = st.integers(1, 3000)


def config(*opts: Any) -> CfgNode:
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.merge_from_list(list(opts))
    return cfg


def blank(height: int, width: int) -> np.ndarray:
    """An image of this size in a few bytes."""
    return np.broadcast_to(np.zeros(3, np.uint8), (height, width, 3))


def size_after(transform: T.Transform, height: int, width: int) -> tuple[int, int]:
    return getattr(transform, "new_h", height), getattr(transform, "new_w", width)


@given(SIDES, SIDES, st.sampled_from([64, 640, 641, 1280]))
def test_the_longer_side_is_that_of_detectron2_up_to_halves(h: int, w: int, side: int) -> None:
    found = size_after(ResizeSide(side, longest=True).get_transform(blank(h, w)), h, w)
    assert max(found) == side
    expected = T.ResizeShortestEdge.get_output_shape(h, w, side, side)
    for axis in (0, 1):
        exact = side * (h, w)[axis] / max(h, w)
        if abs(exact % 1 - 0.5) > 1e-6:
            assert found[axis] == max(expected[axis], 1)
        assert abs(found[axis] - exact) <= max(0.5, 1 - exact)


@given(SIDES, SIDES)
def test_the_shorter_side_has_no_limit_for_the_longer_one(h: int, w: int) -> None:
    found = size_after(ResizeSide(512, longest=False).get_transform(blank(h, w)), h, w)
    assert min(found) == 512
    assert abs(max(found) - 512 * max(h, w) / min(h, w)) <= 0.5


@pytest.mark.parametrize("size", [(50, 70), (70, 33), (200, 20), (64, 64)])
def test_pixels_are_those_of_pillow(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    factor = min(64 / size[0], 64 / size[1])
    height, width = round(size[0] * factor), round(size[1] * factor)
    expected = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    found = ResizeSide(64, longest=True).get_transform(image).apply_image(image)
    assert np.array_equal(found, np.asarray(expected))


def test_each_key_chooses_its_resizing() -> None:
    usual = resize_in_testing(config("INPUT.MIN_SIZE_TEST", 40, "INPUT.MAX_SIZE_TEST", 60))
    assert isinstance(usual, ResizeShortestEdge)
    assert size_after(usual.get_transform(blank(20, 80)), 20, 80) == (15, 60)
    longest = resize_in_testing(config("INPUT.TEST_RESIZE", "longest_side", "INPUT.IMAGE_SIZE", 64))
    assert size_after(longest.get_transform(blank(20, 80)), 20, 80) == (16, 64)
    windows = resize_in_testing(config("TEST.SEMANTIC_WINDOWS", True, "INPUT.IMAGE_SIZE", 32))
    assert size_after(windows.get_transform(blank(20, 80)), 20, 80) == (32, 128)
