"""Resize and crop at once: the transform, and large-scale jitter.

Shapes: h x w is the image, new_h x new_w the resized one, crop_h x crop_w the window cut out of it.
"""

from __future__ import annotations

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform
from PIL import Image

__all__ = ["LargeScaleJitter", "ResizeCropTransform"]


class ResizeCropTransform(Transform):
    """Resize to (new_h, new_w) and cut out a window; pixels outside of it are not computed.

    Attributes:
        h, w: of the input.
        new_h, new_w: after resizing.
        x0, y0, crop_w, crop_h: the window in the resized image.
    """

    def __init__(
        self, h: int, w: int, new_h: int, new_w: int, x0: int, y0: int, crop_w: int, crop_h: int
    ):
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self._resize(img, Image.Resampling.BILINEAR)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self._resize(segmentation, Image.Resampling.NEAREST)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        coords[:, 0] = coords[:, 0] * (self.new_w / self.w) - self.x0
        coords[:, 1] = coords[:, 1] * (self.new_h / self.h) - self.y0
        return coords

    def _resize(self, array: np.ndarray, interpolation: Image.Resampling) -> np.ndarray:
        x_scale, y_scale = self.w / self.new_w, self.h / self.new_h
        # The window in pixels of the input. Rounding can place its end just beyond the image's
        # border. Pillow refuses such a box.
        box = (
            self.x0 * x_scale,
            self.y0 * y_scale,
            min((self.x0 + self.crop_w) * x_scale, self.w),
            min((self.y0 + self.crop_h) * y_scale, self.h),
        )
        size = (self.crop_w, self.crop_h)
        return np.asarray(Image.fromarray(array).resize(size, interpolation, box))


class LargeScaleJitter(T.Augmentation):
    """Large-scale jitter (Ghiasi et al., CVPR 2021): scale at random, then cut out at random.

    The image is scaled to fit a square of `size` times a random factor, with its aspect ratio
    unchanged. A window of at most `size` x `size` is kept. The result is that of Detectron2's
    ResizeScale and FixedSizeCrop, or with `independent` that of a random crop. PadToSize does the
    padding.
    """

    def __init__(self, size: int, min_scale: float, max_scale: float, independent: bool = False):
        """
        Args:
            size: side of the window, pixels.
            min_scale, max_scale: bounds of the uniform random factor.
            independent: draw the window's place along each axis by itself.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        scale = self.size * self._rand_range(self.min_scale, self.max_scale) / max(h, w)
        new_h, new_w = max(round(h * scale), 1), max(round(w * scale), 1)
        crop_h, crop_w = min(new_h, self.size), min(new_w, self.size)
        # One random number places the window along both axes, as in FixedSizeCrop. Its centre
        # therefore lies on one diagonal of the image; a flip before it covers the other diagonal.
        # Windows beside the diagonals come with `independent` alone.
        down = self._rand_range()
        right = self._rand_range() if self.independent else down
        y0, x0 = round((new_h - crop_h) * down), round((new_w - crop_w) * right)
        return ResizeCropTransform(h, w, new_h, new_w, x0, y0, crop_w, crop_h)
