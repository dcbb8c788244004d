"""Crops around things: which thing, how large it becomes, and where it lies in the window."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import transforms as T
from hypothesis import example, given, settings
from hypothesis import strategies as st

from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.data.augmentation import AugmentationInput, build_augmentations
from panoptic_ext.data.crop_around_things import CropAroundThings, _chances
from panoptic_ext.data.resize_crop import LargeScaleJitter, ResizeCropTransform
from panoptic_ext.errors import ConfigError

STUFF, THING, OTHER = 0, 1, 2


def config(**keys: Any) -> CfgNode:
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.INPUT.CROP_AROUND_THINGS.PROBABILITY = 1.0
    for key, value in keys.items():
        cfg.merge_from_list([f"INPUT.{key.replace('__', '.')}", value])
    return cfg


def scene(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (200, 300)) -> Any:
    """Stuff (id 1) with a thing in each box (x0, y0, x1, y1), ids from 2 on."""
    ids = np.ones(size, np.uint8)
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        ids[y0:y1, x0:x1] = 2 + i
    image = np.repeat(ids[..., None] * 20, 3, axis=2)
    classes = np.array([255, STUFF] + [THING] * len(boxes))
    return AugmentationInput(image, ids, classes, np.array([-1, -1] + [THING] * len(boxes)))


def crop(ordinary: Any, **options: Any) -> CropAroundThings:
    return CropAroundThings(ordinary, probability=1.0, **options)


KINDS = {
    "plain": {},
    "absolute": {"CROP__ENABLED": True, "CROP__TYPE": "absolute", "CROP__SIZE": [96, 128]},
    "relative": {"CROP__ENABLED": True, "CROP__TYPE": "relative", "CROP__SIZE": [0.5, 0.5]},
    "range": {"CROP__ENABLED": True, "CROP__TYPE": "relative_range", "CROP__SIZE": [0.5, 0.5]},
    "area": {
        "CROP__ENABLED": True,
        "CROP__TYPE": "absolute_range",
        "CROP__SIZE": [64, 128],
        "CROP__SINGLE_CATEGORY_MAX_AREA": 0.8,
    },
    "lsj": {"AUGMENTATION": "lsj", "IMAGE_SIZE": 128, "MIN_SCALE": 0.3, "MAX_SCALE": 2.0},
}


@pytest.mark.parametrize("kind", KINDS)
@given(
    x=st.integers(0, 290), y=st.integers(0, 190), side=st.integers(1, 10), seed=st.integers(0, 999)
)
@example(x=30, y=1, side=1, seed=316)  # 27 x 25 pixels
@settings(deadline=None, max_examples=10)
def test_small_thing_is_whole_and_of_the_wanted_size(
    kind: str, x: int, y: int, side: int, seed: int
) -> None:
    cfg = config(MIN_SIZE_TRAIN=(100,), **KINDS[kind])
    cfg.INPUT.CROP_AROUND_THINGS.SIZES = [20.0, 30.0]
    cfg.INPUT.CROP_AROUND_THINGS.MAX_ENLARGEMENT = 100.0
    found = scene((x, y, x + side, y + side))
    np.random.seed(seed)
    T.AugmentationList(build_augmentations(cfg, True))(found)
    size = np.sqrt((found.id_map == 2).sum())
    assert 18 <= size <= 32  # the rounding of a pixel on each side
    # Square things stay square, but for rounding in each direction: nothing was cut off.
    rows, columns = np.nonzero(found.id_map == 2)
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_window_is_that_of_the_ordinary_augmentation(kind: str, seed: int) -> None:
    cfg = config(MIN_SIZE_TRAIN=(100,), RANDOM_FLIP="none", **KINDS[kind])
    around = scene((40, 50, 52, 62))
    np.random.seed(seed)
    T.AugmentationList(build_augmentations(cfg, True))(around)
    height, width = around.image.shape[:2]
    assert around.id_map.shape == (height, width)
    limits = {"plain": (100, 150), "relative": (50, 75), "absolute": (96, 128), "lsj": (128, 128)}
    if kind in limits:
        assert (height, width) == limits[kind]
    else:
        assert height in range(50, 129) and width in range(64, 151)


def test_a_large_thing_is_not_made_smaller() -> None:
    found = scene((0, 0, 250, 180))
    transform = crop([T.Resize((200, 300))], sizes=(4.0, 8.0))(found)
    assert isinstance(transform, ResizeCropTransform)
    assert (transform.new_h, transform.new_w) == (200, 300)


def test_enlargement_has_a_limit_unless_the_ordinary_scale_is_larger() -> None:
    thing = (40, 50, 41, 51)
    step = crop([T.Resize((200, 300))], sizes=(64.0, 64.0), max_enlargement=3.0)(scene(thing))
    assert (step.new_h, step.new_w) == (600, 900)
    step = crop([T.Resize((1000, 1500))], sizes=(64.0, 64.0), max_enlargement=3.0)(scene(thing))
    assert (step.new_h, step.new_w) == (1000, 1500)


def test_thing_lies_anywhere_in_the_window() -> None:
    starts = set()
    for seed in range(200):
        np.random.seed(seed)
        found = scene((140, 90, 150, 100))
        crop([T.Resize((200, 300)), T.RandomCrop("absolute", (40, 40))], sizes=(10, 10))(found)
        rows, columns = np.nonzero(found.id_map == 2)
        assert len(rows) == 100
        starts.add((rows.min(), columns.min()))
    assert {y for y, _ in starts} == {x for _, x in starts} == set(range(31))


def test_large_scale_jitter_fills_its_window() -> None:
    """An image made smaller than the window by the jitter, and larger again for its thing."""
    found = scene((40, 50, 50, 60))
    crop([LargeScaleJitter(128, 0.1, 0.1)], sizes=(40.0, 40.0))(found)
    assert found.image.shape == (128, 128, 3)


@pytest.mark.parametrize("ids", [np.ones((50, 60), np.uint8), None])
def test_images_without_things_get_the_ordinary_crop(ids: np.ndarray | None) -> None:
    classes = None if ids is None else np.array([-1, -1])
    found = AugmentationInput(np.zeros((50, 60, 3), np.uint8), ids, classes, classes)
    crop([T.Resize((20, 30))])(found)
    assert found.image.shape == (20, 30, 3)


def test_crowds_stuff_and_hidden_things_are_never_drawn() -> None:
    found = scene((40, 50, 50, 60), (100, 100, 120, 120))
    found.thing_classes = np.array([-1, -1, -1, OTHER, THING])  # the last has no pixel
    for seed in range(20):
        np.random.seed(seed)
        one = scene((40, 50, 50, 60), (100, 100, 120, 120))
        one.thing_classes = found.thing_classes
        crop([T.Resize((200, 300)), T.RandomCrop("absolute", (40, 40))], sizes=(20, 20))(one)
        assert (one.id_map == 3).sum() == 400


def test_chances_by_hand() -> None:
    sizes, classes = np.array([10.0, 20.0, 40.0]), np.array([THING, THING, OTHER])
    assert np.allclose(_chances("size", sizes, classes), [4 / 7, 2 / 7, 1 / 7])
    assert np.allclose(_chances("class", sizes, classes), [0.25, 0.25, 0.5])
    assert np.allclose(_chances("thing", sizes, classes), 1 / 3)


def test_probability_is_the_share_of_such_crops() -> None:
    np.random.seed(0)
    step = CropAroundThings([T.Resize((200, 300))], probability=0.3)
    kinds = [type(step(scene((40, 50, 50, 60)))) for _ in range(200)]
    assert 40 <= kinds.count(ResizeCropTransform) <= 80


@pytest.mark.parametrize(("probability", "training"), [(0.0, True), (1.0, False), (1.0, True)])
def test_only_training_with_the_key_has_the_step(probability: float, training: bool) -> None:
    """Without it no random number is drawn, so that other trainings see the same images as ever."""
    cfg = config()
    cfg.INPUT.CROP_AROUND_THINGS.PROBABILITY = probability
    kinds = [type(step) for step in build_augmentations(cfg, training)]
    assert (CropAroundThings in kinds) == (training and probability > 0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("PROBABILITY", 1.5),
        ("PROBABILITY", -0.1),
        ("DRAW_BY", "sizes"),
        ("SIZES", [96.0, 32.0]),
        ("SIZES", [32.0]),
        ("SIZES", [0.0, 32.0]),
        ("SIZES", [32.0, float("inf")]),
        ("MAX_ENLARGEMENT", 0.0),
    ],
)
def test_bad_values_name_their_key(key: str, value: Any) -> None:
    cfg = config()
    cfg.INPUT.CROP_AROUND_THINGS[key] = value
    with pytest.raises(ConfigError, match=f"INPUT.CROP_AROUND_THINGS.{key} "):
        build_augmentations(cfg, True)
