"""Augmentations that resize a whole image by one of its sides.

Shapes: H x W is the image before, S the size that a side gets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, Transform
from PIL import Image

from panoptic_ext.config.image_values import check_test_images

__all__ = ["ResizeShortestEdge", "ResizeSide", "resize_in_testing"]


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's ResizeShortestEdge, but a very long image keeps at least one pixel per side."""

    def get_transform(self, image: np.ndarray) -> Transform:
        transform = super().get_transform(image)
        if isinstance(transform, T.ResizeTransform):
            transform.new_h, transform.new_w = max(transform.new_h, 1), max(transform.new_w, 1)
        return transform


class ResizeSide(T.Augmentation):
    """Resize so that one side is `size`, up or down, with the aspect ratio unchanged.

    The factor f is S / H or S / W, and the new size (round(f H), round(f W)), at least 1, bilinear
    with Pillow's antialiasing. These are EoMT's formulas; Detectron2's ResizeShortestEdge rounds
    halves up and has an upper limit of the longer side.
    """

    def __init__(self, size: int, longest: bool):
        """
        Args:
            size: S, pixels.
            longest: whether the longer side gets this size, or the shorter one.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        factor = (min if self.longest else max)(self.size / h, self.size / w)
        new_h, new_w = max(round(h * factor), 1), max(round(w * factor), 1)
        if (new_h, new_w) == (h, w):
            return NoOpTransform()
        return T.ResizeTransform(h, w, new_h, new_w, Image.Resampling.BILINEAR)


def resize_in_testing(cfg: Any) -> T.Augmentation:
    """The augmentation of TEST.SEMANTIC_WINDOWS, INPUT.TEST_RESIZE and the sizes they name.

    Raises:
        ConfigError: a value is wrong, see `check_test_images`.
    """
    check_test_images(cfg)
    if cfg.TEST.SEMANTIC_WINDOWS:
        return ResizeSide(cfg.INPUT.IMAGE_SIZE, longest=False)
    if cfg.INPUT.TEST_RESIZE == "longest_side":
        return ResizeSide(cfg.INPUT.IMAGE_SIZE, longest=True)
    return ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")
