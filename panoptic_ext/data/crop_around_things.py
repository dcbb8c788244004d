"""Crops around things, enlarged where a thing is small.

Shapes: H x W is the image, h x w a window, N the number of segments. The size of a thing is the
square root of its pixels, as COCO's limits of small and large objects (32 and 96) count it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform

from panoptic_ext.data.coco.runs import find_runs, segment_boxes
from panoptic_ext.data.resize_crop import LargeScaleJitter, ResizeCropTransform
from panoptic_ext.errors import ConfigError, check_known, quoted

__all__ = ["CropAroundThings", "check_crop_around_things"]

_WEIGHTS = ("size", "class", "thing")


class CropAroundThings(T.Augmentation):
    """With a chance, cut the window of the ordinary augmentation out around a random thing.

    The window has the size that the ordinary augmentation draws for it. A thing that would be
    smaller in it than a size drawn from `sizes` is enlarged to that size; none is made smaller than
    by the ordinary scale. The thing lies anywhere in the window, and whole if it fits.
    """

    def __init__(
        self,
        ordinary: Sequence[T.Augmentation],
        *,
        probability: float,
        draw_by: str = "size",
        sizes: tuple[float, float] = (32.0, 96.0),
        max_enlargement: float = 2.0,
    ):
        """
        Args:
            ordinary: for images without a thing, and for all others: either LargeScaleJitter, or
                an augmentation that resizes, followed by a random crop or by nothing.
            probability: chance of a crop around a thing.
            draw_by: which thing. "size": with chances inverse to their sizes; "class": a class of
                the image first, each with the same chance; "thing": each with the same chance.
            sizes: least and largest wanted size, pixels; drawn evenly in the logarithm.
            max_enlargement: the scale is at most this, in terms of the image's own pixels, unless
                the ordinary one is larger.
        """
        super().__init__()
        self._init(locals())

    def __call__(self, aug_input: Any) -> Transform:
        """Transform `aug_input`, of which `id_map` and `thing_classes` are read."""
        if np.random.uniform() < self.probability:
            transform = self._draw(aug_input)
            if transform is not None:
                aug_input.transform(transform)
                return transform
        return T.AugmentationList(self.ordinary)(aug_input)

    def _draw(self, aug_input: Any) -> Transform | None:
        """The transform of a random crop, or None for an image without a thing."""
        ids, classes = aug_input.id_map, aug_input.thing_classes
        if ids is None or classes is None:
            return None
        runs = find_runs(ids, split_rows=True)
        pixels = np.bincount(runs.ids, runs.lengths, len(classes))
        things = np.flatnonzero((classes >= 0) & (pixels > 0))
        if len(things) == 0:
            return None
        sizes = np.sqrt(pixels[things])
        chosen = np.random.choice(len(things), p=_chances(self.draw_by, sizes, classes[things]))
        box = segment_boxes(runs, np.where(runs.ids == things[chosen], 0, -1), 1)[0]
        ordinary_h, ordinary_w, window_h, window_w = self._ordinary_sizes(aug_input.image)
        height, width = ids.shape
        factor = self._factor(ordinary_w / width, float(sizes[chosen]))
        new_h, new_w = max(round(ordinary_h * factor), 1), max(round(ordinary_w * factor), 1)
        window_h, window_w = min(window_h, new_h), min(window_w, new_w)
        y0 = _place(box[1], box[3], new_h / height, window_h, new_h)
        x0 = _place(box[0], box[2], new_w / width, window_w, new_w)
        return ResizeCropTransform(height, width, new_h, new_w, x0, y0, window_w, window_h)

    def _ordinary_sizes(self, image: np.ndarray) -> tuple[int, int, int, int]:
        """Height and width of an image as ordinarily resized, and of the window at most."""
        resize, *rest = self.ordinary
        transform = resize.get_transform(image)
        # A transform that changes nothing has no sizes.
        height = getattr(transform, "new_h", image.shape[0])
        width = getattr(transform, "new_w", image.shape[1])
        if isinstance(resize, LargeScaleJitter):
            return height, width, resize.size, resize.size
        if not rest:
            return height, width, height, width
        crop = getattr(rest[0], "crop_aug", rest[0])  # RandomCrop_CategoryAreaConstraint has one
        if crop.crop_type == "absolute":
            return height, width, *crop.crop_size
        window_h, window_w = crop.get_crop_size((height, width))
        return height, width, max(window_h, 1), max(window_w, 1)

    def _factor(self, ordinary_scale: float, size: float) -> float:
        """How much larger than by the ordinary scale the image becomes, 1 or more."""
        wanted = np.exp(np.random.uniform(*np.log(self.sizes))) / size
        return max(min(wanted, self.max_enlargement) / ordinary_scale, 1.0)


def check_crop_around_things(keys: Any) -> None:
    """Check the keys of cfg.INPUT.CROP_AROUND_THINGS.

    Raises:
        ConfigError: a value cannot be used; names the key.
    """
    name = "INPUT.CROP_AROUND_THINGS"
    if not 0 <= keys.PROBABILITY <= 1:
        raise ConfigError(f"{name}.PROBABILITY is {keys.PROBABILITY}, expected 0 to 1")
    check_known(f"{name}.DRAW_BY", keys.DRAW_BY, _WEIGHTS)
    sizes = keys.SIZES
    good = isinstance(sizes, (list, tuple)) and len(sizes) == 2
    good = good and all(isinstance(size, (int, float)) for size in sizes)
    if not good or not 0 < sizes[0] <= sizes[1] < np.inf:
        raise ConfigError(
            f"{name}.SIZES is {quoted(sizes)}, expected the least and the largest size in pixels, "
            "more than 0, in this order"
        )
    if not keys.MAX_ENLARGEMENT > 0:
        raise ConfigError(
            f"{name}.MAX_ENLARGEMENT is {keys.MAX_ENLARGEMENT}, expected a factor above 0"
        )


def _chances(draw_by: str, sizes: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(N,) chance of each thing of an image; they add up to 1."""
    if draw_by == "size":
        weights = 1 / sizes
    elif draw_by == "class":
        _, inverse, number = np.unique(classes, return_inverse=True, return_counts=True)
        weights = 1 / number[inverse]
    else:
        weights = np.ones(len(sizes))
    return weights / weights.sum()


def _place(low: int, high: int, scale: float, window: int, size: int) -> int:
    """First pixel of a random window along one axis that shows as much as it can of a thing.

    Args:
        low, high: the thing's box in the image, `high` exclusive.
        scale: of the resized image.
        window, size: of the window and of the resized image, pixels; window <= size.
    """
    # A thing that fits lies within the window; one that does not fills it.
    ends = int(np.floor(low * scale)), int(np.ceil(high * scale)) - window
    first, last = (min(max(end, 0), size - window) for end in sorted(ends))
    return int(np.random.randint(first, last + 1))
