from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import transforms as T
from hypothesis import given
from hypothesis import strategies as st

from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.data.augmentation import (
    AugmentationInput,
    ColorJitter,
    ColorTransform,
    VoidPadTransform,
    build_augmentations,
)
from panoptic_ext.data.resize_crop import LargeScaleJitter
from panoptic_ext.errors import ConfigError


def config(**inputs: Any) -> CfgNode:
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    for key, value in inputs.items():
        cfg.merge_from_list([f"INPUT.{key.replace('__', '.')}", value])
    return cfg


def sample(height: int = 60, width: int = 90, top: int = 5) -> AugmentationInput:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    ids = rng.integers(0, top + 1, (height, width))
    ids = ids.astype(np.uint8 if top < 256 else np.int32)
    return AugmentationInput(image, ids, np.concatenate([[255], np.arange(top) % 3]))


def names(cfg: CfgNode, is_train: bool = True) -> list[str]:
    return [type(a).__name__ for a in build_augmentations(cfg, is_train)]


@pytest.mark.parametrize("top", [5, 255, 256, 70000])
def test_id_planes_round_trip(top: int) -> None:
    ids = np.random.default_rng(0).integers(0, top + 1, (7, 9))
    ids = ids.astype(np.uint8 if top < 256 else np.int32)
    found = AugmentationInput(np.zeros((7, 9, 3), np.uint8), ids, np.arange(top + 1))
    assert np.array_equal(found.id_map, ids)
    assert np.array_equal(found.sem_seg, ids)


def test_defaults() -> None:
    assert names(config()) == ["ResizeShortestEdge", "RandomFlip"]
    assert names(config(), is_train=False) == ["ResizeShortestEdge"]


def test_everything_on() -> None:
    cfg = config(CROP__ENABLED=True, COLOR_AUG_SSD=True, SIZE_DIVISIBILITY=32)
    assert names(cfg) == [
        "ResizeShortestEdge",
        "RandomCrop",
        "RandomFlip",
        "ColorJitter",
        "PadToDivisor",
    ]


@pytest.mark.parametrize("seed", range(6))
def test_resizing_and_cropping_at_once_equals_one_after_the_other(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (50, 70, 3)).astype(np.uint8)
    columns = np.tile(np.arange(70, dtype=np.uint8), (50, 1))
    np.random.seed(seed)
    both = LargeScaleJitter(64, 0.3, 3.0).get_transform(image)
    resize = T.ResizeTransform(50, 70, both.new_h, both.new_w)
    crop = T.CropTransform(both.x0, both.y0, both.crop_w, both.crop_h)
    expected = crop.apply_image(resize.apply_image(image)).astype(int)
    difference = np.abs(both.apply_image(image) - expected)  # rounding of the filter's weights
    assert difference.max() <= 3
    assert (difference > 1).mean() < 1e-3
    # Samples exactly between two pixels may take either of them.
    expected = crop.apply_segmentation(resize.apply_segmentation(columns)).astype(int)
    assert np.abs(both.apply_segmentation(columns) - expected).max() <= 1
    corners = np.array([[0.0, 0.0], [70.0, 50.0], [33.0, 7.0]])
    expected = crop.apply_coords(resize.apply_coords(corners.copy()))
    assert np.allclose(both.apply_coords(corners), expected)


# The published LSJ mappers are Detectron2's flip, ResizeScale and FixedSizeCrop.
@pytest.mark.parametrize("seed", range(12))
def test_lsj_is_that_of_the_published_mapper(seed: int) -> None:
    cfg = config(AUGMENTATION="lsj", IMAGE_SIZE=64, MIN_SCALE=0.3, MAX_SCALE=3.0)
    published = [T.RandomFlip(), T.ResizeScale(0.3, 3.0, 64, 64), T.FixedSizeCrop((64, 64))]
    found, expected = sample(), T.AugInput(sample().image)
    np.random.seed(seed)
    T.AugmentationList(build_augmentations(cfg, True))(found)
    np.random.seed(seed)
    T.AugmentationList(published)(expected)
    difference = np.abs(found.image.astype(int) - expected.image)
    assert difference.max() <= 3  # rounding of the filter's weights
    assert (difference > 1).mean() < 1e-3


def test_padding_to_a_divisor_is_the_published_grey() -> None:
    found = sample(20, 30)
    cfg = config(MIN_SIZE_TRAIN=(20,), RANDOM_FLIP="none", SIZE_DIVISIBILITY=64)
    T.AugmentationList(build_augmentations(cfg, True))(found)
    assert found.image.shape == (64, 64, 3)
    assert (found.image[20:] == 128).all() and (found.image[:, 30:] == 128).all()


@pytest.mark.parametrize("keys", [{"AUGMENTATION": "lsj"}, {"SIZE_DIVISIBILITY": 64}])
def test_black_padding_changes_added_pixels_alone(keys: dict[str, Any]) -> None:
    keys |= {"IMAGE_SIZE": 64, "MIN_SCALE": 0.5, "MAX_SCALE": 0.5, "MIN_SIZE_TRAIN": (40,)}
    keys |= {"COLOR_AUG_SSD": True}
    images = []
    for value in ("mean", "black"):
        np.random.seed(1)
        found = sample()
        T.AugmentationList(build_augmentations(config(PAD_VALUE=value, **keys), True))(found)
        images.append(found.image)
    added = np.zeros((64, 64), bool)
    height, width = (21, 32) if "AUGMENTATION" in keys else (40, 60)
    added[height:] = added[:, width:] = True
    assert (images[0][added] == 128).all() and (images[1][added] == 0).all()
    assert np.array_equal(images[0][~added], images[1][~added])


# EoMT's factor r min(S / h, S / w) with a crop that is placed along each axis by itself.
@pytest.mark.parametrize("seed", range(6))
def test_uniform_crops_by_hand(seed: int) -> None:
    image = np.zeros((60, 90, 3), np.uint8)
    np.random.seed(seed)
    step = LargeScaleJitter(64, 1.5, 3.0, independent=True).get_transform(image)
    np.random.seed(seed)
    factor = np.random.uniform(1.5, 3.0) * min(64 / 60, 64 / 90)
    down, right = np.random.uniform(), np.random.uniform()
    assert (step.new_h, step.new_w) == (round(60 * factor), round(90 * factor))
    assert (step.y0, step.x0) == (
        round(max(step.new_h - 64, 0) * down),
        round(max(step.new_w - 64, 0) * right),
    )


@pytest.mark.parametrize(("position", "is_diagonal"), [("diagonal", True), ("uniform", False)])
def test_places_of_crops(position: str, is_diagonal: bool) -> None:
    cfg = config(AUGMENTATION="lsj", IMAGE_SIZE=64, MIN_SCALE=3.0, MAX_SCALE=3.0)
    cfg.INPUT.CROP_POSITION = position
    jitter = build_augmentations(cfg, True)[1]
    places = []
    for seed in range(40):
        np.random.seed(seed)
        step = jitter.get_transform(np.zeros((60, 60, 3), np.uint8))
        places.append((step.y0 / 128, step.x0 / 128))
    rows, columns = np.array(places).T
    assert (np.abs(rows - columns).max() < 0.01) == is_diagonal
    assert rows.min() < 0.1 and rows.max() > 0.9 and columns.min() < 0.1 and columns.max() > 0.9


@pytest.mark.parametrize("scale", [0.001, 0.5, 1.0, 2.0])
def test_jitter_fits_the_longer_side(scale: float) -> None:
    step = LargeScaleJitter(64, scale, scale).get_transform(np.zeros((50, 70, 3), np.uint8))
    assert (step.new_w, step.new_h) == (max(round(64 * scale), 1), max(round(64 * scale / 1.4), 1))
    assert (step.crop_w, step.crop_h) == (min(step.new_w, 64), min(step.new_h, 64))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("top", [5, 300])
def test_lsj_gives_squares_padded_with_void(seed: int, top: int) -> None:
    cfg = config(AUGMENTATION="lsj", IMAGE_SIZE=64, MIN_SCALE=0.3, COLOR_AUG_SSD=True)
    np.random.seed(seed)
    found = sample(top=top)
    T.AugmentationList(build_augmentations(cfg, True))(found)
    assert found.image.shape == (64, 64, 3)
    assert found.id_map.shape == (64, 64)
    padding = (found.image == 128).all(axis=2)
    corner = padding[-1].all()
    assert not corner or (not found.id_map[-1].any() and (found.sem_seg[-1] == 255).all())


def test_crop_with_category_limit() -> None:
    cfg = config(
        MIN_SIZE_TRAIN=(60,),
        CROP__ENABLED=True,
        CROP__TYPE="absolute",
        CROP__SIZE=[20, 20],
        CROP__SINGLE_CATEGORY_MAX_AREA=0.75,
    )
    image = np.zeros((60, 60, 3), np.uint8)
    ids = np.ones((60, 60), np.uint8)
    ids[:, 30:] = 2
    shares = []
    for seed in range(10):
        np.random.seed(seed)
        found = AugmentationInput(image, ids, np.array([255, 0, 1]))
        T.AugmentationList(build_augmentations(cfg, True))(found)
        assert found.id_map.shape == (20, 20)
        shares.append(np.bincount(found.sem_seg.ravel()).max() / 400)
    assert np.mean(np.array(shares) < 0.75) >= 0.9


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("AUGMENTATION", "ljs", "unknown INPUT.AUGMENTATION 'ljs'.*did you mean 'lsj'"),
        ("RANDOM_FLIP", "horizontl", "INPUT.RANDOM_FLIP.*did you mean 'horizontal'"),
    ],
)
def test_unknown_choices(key: str, value: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        build_augmentations(config(**{key: value}), True)


def test_flip_can_be_vertical_or_off() -> None:
    flip = build_augmentations(config(RANDOM_FLIP="vertical"), True)[1]
    assert (flip.vertical, flip.horizontal) == (True, False)
    assert names(config(RANDOM_FLIP="none")) == ["ResizeShortestEdge"]


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"MIN_SIZE_TRAIN": ()}, "MIN_SIZE_TRAIN"),
        ({"MIN_SIZE_TRAIN": (-5,)}, "MIN_SIZE_TRAIN"),
        ({"MIN_SIZE_TRAIN": ("a",)}, "MIN_SIZE_TRAIN"),
        ({"MIN_SIZE_TRAIN_SAMPLING": "chioce"}, "did you mean 'choice'"),
        ({"MIN_SIZE_TRAIN_SAMPLING": "range", "MIN_SIZE_TRAIN": (48,)}, "two sizes"),
        ({"CROP__ENABLED": True, "CROP__TYPE": "foo"}, r"CROP\.TYPE"),
        ({"CROP__ENABLED": True, "CROP__SIZE": [0.9]}, r"CROP\.SIZE"),
        ({"CROP__ENABLED": True, "CROP__SIZE": [0.9, 1.5]}, r"CROP\.SIZE"),
        ({"CROP__ENABLED": True, "CROP__TYPE": "absolute", "CROP__SIZE": [0.9, 0.9]}, "in pixels"),
        (
            {"CROP__ENABLED": True, "CROP__TYPE": "absolute_range", "CROP__SIZE": [9, 8]},
            "least and most",
        ),
        ({"AUGMENTATION": "lsj", "IMAGE_SIZE": 0}, "IMAGE_SIZE"),
        ({"AUGMENTATION": "lsj", "MIN_SCALE": 3.0}, "MIN_SCALE"),
        ({"AUGMENTATION": "ljs"}, "did you mean 'lsj'"),
        ({"AUGMENTATION": "lsj", "CROP_POSITION": "unifrm"}, "did you mean 'uniform'"),
        ({"PAD_VALUE": "blak"}, "INPUT.PAD_VALUE.*did you mean 'black'"),
    ],
)
def test_values_that_cannot_be_used(values: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        build_augmentations(config(**values), True)


@pytest.mark.parametrize("crop_type", ["relative", "relative_range", "absolute", "absolute_range"])
def test_crops_that_can_be_used(crop_type: str) -> None:
    size = [0.5, 1.0] if crop_type.startswith("relative") else [16, 32]
    cfg = config(CROP__ENABLED=True, CROP__TYPE=crop_type, CROP__SIZE=size)
    found = sample()
    T.AugmentationList(build_augmentations(cfg, True))(found)
    assert found.image.shape[:2] == found.id_map.shape


def test_void_padding_by_hand() -> None:
    pad = VoidPadTransform(1, 2, (9.6, 20.4, 30.0))
    image = pad.apply_image(np.ones((2, 2, 3), np.uint8))
    assert image.shape == (4, 3, 3)
    assert image[:2, :2].min() == image[:2, :2].max() == 1
    assert image[3, 0].tolist() == image[0, 2].tolist() == [10, 20, 30]
    assert pad.apply_segmentation(np.full((2, 2), 7)).sum() == 28


def test_colour_by_hand() -> None:
    image = np.array([[[0, 100, 200], [50, 50, 50]]], np.uint8)
    assert np.array_equal(ColorTransform().apply_image(image), image)
    assert ColorTransform(brightness=-60).apply_image(image).tolist() == [[[0, 40, 140], [0, 0, 0]]]
    doubled = ColorTransform(contrast=2.0).apply_image(image)
    assert doubled.tolist() == [[[0, 200, 255], [100, 100, 100]]]
    first = ColorTransform(brightness=10, contrast=2.0, contrast_first=True).apply_image(image)
    last = ColorTransform(brightness=10, contrast=2.0, contrast_first=False).apply_image(image)
    assert (first[0, 1, 0], last[0, 1, 0]) == (120, 120)  # (50 + 10) * 2 in both
    grey = np.full((1, 1, 3), 250, np.uint8)  # clipped between the two, as in the published code
    dimmed = ColorTransform(brightness=30, contrast=0.5).apply_image(grey)
    assert dimmed[0, 0, 0] == 128
    gray = ColorTransform(saturation=0.0).apply_image(image)
    assert gray[0, 0].tolist() == [200, 200, 200]


@pytest.mark.parametrize("bgr", [True, False])
def test_hue_turns_red_into_green(bgr: bool) -> None:
    red, green = ([0, 0, 255], [0, 255, 0]) if bgr else ([255, 0, 0], [0, 255, 0])
    turned = ColorTransform(hue=120, bgr=bgr).apply_image(np.array([[red]], np.uint8))[0, 0]
    assert np.abs(turned.astype(int) - green).max() <= 8


# The published 18 are OpenCV's steps of 2 degrees.
def test_hue_spans_36_degrees_each_way() -> None:
    np.random.seed(0)
    image = np.zeros((1, 1, 3), np.uint8)
    hues = np.array([ColorJitter().get_transform(image).hue for _ in range(400)])
    assert 34 < hues.max() <= 36 and -36 <= hues.min() < -34


@given(st.integers(0, 2**32 - 1))
def test_colour_jitter_leaves_geometry_alone(seed: int) -> None:
    np.random.seed(seed)
    found = sample(8, 9)
    ids = found.id_map.copy()
    ColorJitter()(found)
    assert found.image.dtype == np.uint8
    assert found.image.shape == (8, 9, 3)
    assert np.array_equal(found.id_map, ids)
