"""Augmentations that are injected into the mapper, built from a config.

Geometric transforms are applied to the image (H, W, 3) and to the id map alike. Added pixels are
0 (void) in the id map and grey or black in the image, whatever Detectron2 would pad with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, Transform
from PIL import Image

from panoptic_ext.config.image_values import pads_black
from panoptic_ext.data.augmentation_keys import (
    check_lsj_keys,
    check_shortest_edge_keys,
)
from panoptic_ext.data.blended_colors import BlendedColorJitter
from panoptic_ext.data.crop_around_things import CropAroundThings, check_crop_around_things
from panoptic_ext.data.resize_crop import LargeScaleJitter
from panoptic_ext.data.resizing import ResizeShortestEdge, resize_in_testing
from panoptic_ext.errors import check_known

__all__ = [
    "AugmentationInput",
    "ColorJitter",
    "ColorTransform",
    "PadToDivisor",
    "PadToSize",
    "VoidPadTransform",
    "build_augmentations",
]

_KINDS = ("shortest_edge", "lsj")
_COLOR_RULES = ("ssd", "torchvision")
_FLIPS = ("horizontal", "vertical", "none")

# INPUT.PAD_VALUE "mean": the grey that Detectron2's FixedSizeCrop and the published mappers of
# Mask2Former pad images with. Batches are padded later, with the mean pixel.
_GREY = (128.0, 128.0, 128.0)
_BLACK = (0.0, 0.0, 0.0)


class AugmentationInput:
    """The input of augmentations: `image`, and `sem_seg`, computed when one of them reads it.

    The map of local ids is stored as one uint8 plane, or as three for more than 255 segments,
    because Detectron2's transforms are exact and fast for uint8.

    Attributes:
        image: (H, W, 3) uint8, as transformed so far.
        thing_classes: as given; not transformed.
    """

    def __init__(
        self,
        image: np.ndarray,
        id_map: np.ndarray | None,
        categories: np.ndarray | None,
        thing_classes: np.ndarray | None = None,
    ):
        """
        Args:
            image: (H, W, 3) uint8.
            id_map: (H, W) local ids 0..N, 0 = void; None at test time.
            categories: (N + 1,) value of `sem_seg` for each local id.
            thing_classes: (N + 1,) class of each local id that is a thing and no crowd, -1 of the
                others, for crops around things.
        """
        self.image = image
        self.thing_classes = thing_classes
        self._categories = categories
        self._planes = None if id_map is None else _to_planes(id_map)

    @property
    def id_map(self) -> np.ndarray | None:
        """(H, W) local ids as transformed so far."""
        return None if self._planes is None else _from_planes(self._planes)

    @property
    def sem_seg(self) -> np.ndarray | None:
        """(H, W) categories as transformed so far, for crops that depend on them."""
        ids = self.id_map
        return None if ids is None or self._categories is None else self._categories[ids]

    def transform(self, tfm: Transform) -> None:
        """Apply `tfm` to the image and the id map."""
        self.image = tfm.apply_image(self.image)
        if self._planes is not None:
            self._planes = tfm.apply_segmentation(self._planes)


def _to_planes(id_map: np.ndarray) -> np.ndarray:
    if id_map.dtype == np.uint8:
        return id_map
    # There are always three planes, although two would hold 65535 ids: Pillow takes three as RGB.
    return np.stack([(id_map >> shift & 0xFF).astype(np.uint8) for shift in (0, 8, 16)], axis=-1)


def _from_planes(planes: np.ndarray) -> np.ndarray:
    if planes.ndim == 2:
        return planes
    low, middle, high = (planes[..., i].astype(np.int32) for i in range(3))
    return low | middle << 8 | high << 16


class VoidPadTransform(Transform):
    """Pad on the right and below: the image with `color`, a segmentation with 0 (void)."""

    def __init__(self, right: int, below: int, color: Sequence[float]):
        super().__init__()
        self.right, self.below = right, below
        self.color = np.asarray(color, np.float32)

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        color = np.round(self.color) if np.issubdtype(img.dtype, np.integer) else self.color
        return self._pad(img, color[: img.shape[2]] if img.ndim == 3 else color.mean())

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self._pad(segmentation, 0)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def _pad(self, array: np.ndarray, value: Any) -> np.ndarray:
        height, width = array.shape[:2]
        out = np.empty((height + self.below, width + self.right, *array.shape[2:]), array.dtype)
        row = np.empty(out.shape[1:], array.dtype)
        row[:] = value  # rows are copied much faster than single pixels
        out[:height, :width] = array
        out[height:] = row
        out[:height, width:] = row[width:]
        return out


class PadToSize(T.Augmentation):
    """Pad to at least (height, width); see VoidPadTransform."""

    def __init__(self, height: int, width: int, color: Sequence[float]):
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        below = max(self.height - image.shape[0], 0)
        right = max(self.width - image.shape[1], 0)
        return VoidPadTransform(right, below, self.color) if below or right else NoOpTransform()


class PadToDivisor(T.Augmentation):
    """Pad height and width to multiples of `divisor`; see VoidPadTransform."""

    def __init__(self, divisor: int, color: Sequence[float]):
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        below, right = -image.shape[0] % self.divisor, -image.shape[1] % self.divisor
        return VoidPadTransform(right, below, self.color) if below or right else NoOpTransform()


class ColorTransform(Transform):
    """Change brightness, contrast, saturation and hue; coordinates and masks stay the same.

    Attributes:
        brightness: added first, in grey levels.
        contrast, saturation: factors.
        hue: added, in degrees.
        contrast_first: apply contrast before saturation and hue, not after them.
        bgr: the channels of the image are in the order BGR, not RGB.
    """

    def __init__(
        self,
        brightness: float = 0.0,
        contrast: float = 1.0,
        saturation: float = 1.0,
        hue: float = 0.0,
        contrast_first: bool = True,
        bgr: bool = True,
    ):
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        img = self._linear(img, 1.0, self.brightness)
        if self.contrast_first:
            img = self._linear(img, self.contrast, 0.0)
        if self.saturation != 1.0 or self.hue != 0.0:
            img = self._color(img)
        return img if self.contrast_first else self._linear(img, self.contrast, 0.0)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    @staticmethod
    def _linear(img: np.ndarray, factor: float, offset: float) -> np.ndarray:
        if factor == 1.0 and offset == 0.0:
            return img
        # A uint8 image has 256 values at most, so a table replaces arithmetic on every pixel.
        table = np.arange(256, dtype=np.float32) * factor + offset
        return np.clip(np.round(table), 0, 255).astype(np.uint8)[img]

    def _color(self, img: np.ndarray) -> np.ndarray:
        rgb = img[..., ::-1] if self.bgr else img
        hsv = np.array(Image.fromarray(np.ascontiguousarray(rgb)).convert("HSV"))
        # Hue is a circle and uint8 wraps around at 256; saturation must be clipped instead.
        hsv[..., 0] += np.uint8(round(self.hue * 256 / 360) % 256)
        hsv[..., 1] = self._linear(hsv[..., 1], self.saturation, 0.0)
        planes = [Image.fromarray(hsv[..., channel]) for channel in range(3)]
        rgb = np.asarray(Image.merge("HSV", planes).convert("RGB"))
        return rgb[..., ::-1] if self.bgr else rgb


class ColorJitter(T.Augmentation):
    """Photometric distortion of SSD (Liu et al., ECCV 2016, section 3.6), each with chance 1/2.

    Ranges and order are those of PointRend's ColorAugSSDTransform, which the published Mask2Former
    uses. Its hue of 18 is in OpenCV's unit of 2 degrees, hence 36 degrees here.
    """

    def __init__(
        self,
        bgr: bool = True,
        brightness: float = 32.0,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: float = 36.0,
    ):
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        def draw(bounds: tuple[float, float], neutral: float) -> float:
            return self._rand_range(*bounds) if np.random.randint(2) else neutral

        # The order of these arguments is the order of the random draws: another order gives other
        # images for the same seed.
        return ColorTransform(
            brightness=draw((-self.brightness, self.brightness), 0.0),
            contrast=draw(self.contrast, 1.0),
            saturation=draw(self.saturation, 1.0),
            hue=draw((-self.hue, self.hue), 0.0),
            contrast_first=bool(np.random.randint(2)),
            bgr=self.bgr,
        )


def build_augmentations(cfg: Any, is_train: bool, ignore_label: int = 255) -> list[T.Augmentation]:
    """Return the augmentations that `cfg.INPUT` selects, in order.

    Args:
        cfg: a config with panoptic_ext's keys.
        is_train: at test time the image is only resized.
        ignore_label: value of void in the category map, which crops ignore.

    Raises:
        ConfigError: a value that cannot be used; names the key.
    """
    if not is_train:
        return [resize_in_testing(cfg)]
    kind = cfg.INPUT.AUGMENTATION
    check_known("INPUT.AUGMENTATION", kind, _KINDS)
    flip = cfg.INPUT.RANDOM_FLIP
    check_known("INPUT.RANDOM_FLIP", flip, _FLIPS)
    check_known("INPUT.COLOR_AUG_RULE", cfg.INPUT.COLOR_AUG_RULE, _COLOR_RULES)
    check_lsj_keys(cfg.INPUT) if kind == "lsj" else check_shortest_edge_keys(cfg.INPUT)
    check_crop_around_things(cfg.INPUT.CROP_AROUND_THINGS)
    flips: list[T.Augmentation] = []
    if flip != "none":
        flips.append(T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical"))
    # The flip comes before large-scale jitter, whose window lies on one diagonal only.
    if kind == "lsj":
        augmentations = [*flips, *_around_things(cfg, _lsj(cfg))]
    else:
        augmentations = [*_around_things(cfg, _shortest_edge(cfg, ignore_label)), *flips]
    bgr = cfg.INPUT.FORMAT == "BGR"
    if cfg.INPUT.COLOR_AUG_SSD and cfg.INPUT.COLOR_AUG_RULE == "ssd":
        augmentations.append(ColorJitter(bgr=bgr))
    elif cfg.INPUT.COLOR_AUG_SSD:
        # First of all, because contrast depends on the mean of the whole image.
        augmentations.insert(0, BlendedColorJitter(bgr=bgr))
    # Padding comes after the change of colours, so that added pixels keep their grey or black.
    padding = _BLACK if pads_black(cfg) else _GREY
    if kind == "lsj":
        augmentations.append(PadToSize(cfg.INPUT.IMAGE_SIZE, cfg.INPUT.IMAGE_SIZE, padding))
    if cfg.INPUT.SIZE_DIVISIBILITY > 0:
        augmentations.append(PadToDivisor(cfg.INPUT.SIZE_DIVISIBILITY, padding))
    return augmentations


def _shortest_edge(cfg: Any, ignore_label: int) -> list[T.Augmentation]:
    augmentations: list[T.Augmentation] = [
        ResizeShortestEdge(
            cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
        )
    ]
    crop = cfg.INPUT.CROP
    if crop.ENABLED and crop.SINGLE_CATEGORY_MAX_AREA < 1.0:
        augmentations.append(
            T.RandomCrop_CategoryAreaConstraint(
                crop.TYPE, crop.SIZE, crop.SINGLE_CATEGORY_MAX_AREA, ignore_label
            )
        )
    elif crop.ENABLED:
        augmentations.append(T.RandomCrop(crop.TYPE, crop.SIZE))
    return augmentations


def _lsj(cfg: Any) -> list[T.Augmentation]:
    keys = cfg.INPUT
    independent = keys.CROP_POSITION == "uniform"
    return [LargeScaleJitter(keys.IMAGE_SIZE, keys.MIN_SCALE, keys.MAX_SCALE, independent)]


def _around_things(cfg: Any, ordinary: list[T.Augmentation]) -> list[T.Augmentation]:
    keys = cfg.INPUT.CROP_AROUND_THINGS
    # Left out at 0, because it would draw a random number for every image.
    if keys.PROBABILITY == 0:
        return ordinary
    return [
        CropAroundThings(
            ordinary,
            probability=keys.PROBABILITY,
            draw_by=keys.DRAW_BY,
            sizes=tuple(keys.SIZES),
            max_enlargement=keys.MAX_ENLARGEMENT,
        )
    ]
