"""Colour jitter by blending, as torchvision's `adjust_brightness`, `adjust_contrast` and so on do.

EoMT (Kerssies et al., CVPR 2025) is trained with it. It has the order and the chances of SSD's
jitter, but brightness is a factor, contrast keeps the image's mean grey, and saturation each
pixel's.
"""

from __future__ import annotations

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform
from PIL import Image, ImageEnhance

__all__ = ["BlendedColorJitter", "BlendedColorTransform"]


class BlendedColorTransform(Transform):
    """Change brightness, contrast, saturation and hue; coordinates and masks stay the same.

    Attributes:
        brightness: factor, applied first.
        contrast: 1 leaves the image, 0 gives its mean grey.
        saturation: 1 leaves the image, 0 gives its grey values.
        hue: added, in degrees.
        contrast_first: apply contrast before saturation and hue, not after them.
        bgr: the channels of the image are in the order BGR, not RGB.
    """

    def __init__(
        self,
        brightness: float = 1.0,
        contrast: float = 1.0,
        saturation: float = 1.0,
        hue: float = 0.0,
        contrast_first: bool = True,
        bgr: bool = True,
    ):
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        rgb = Image.fromarray(np.ascontiguousarray(img[..., ::-1] if self.bgr else img))
        if self.brightness != 1.0:
            rgb = ImageEnhance.Brightness(rgb).enhance(self.brightness)
        if self.contrast_first:
            rgb = self._with_contrast(rgb)
        if self.saturation != 1.0:
            rgb = ImageEnhance.Color(rgb).enhance(self.saturation)
        if self.hue != 0.0:
            rgb = self._with_hue(rgb)
        if not self.contrast_first:
            rgb = self._with_contrast(rgb)
        changed = np.asarray(rgb)
        return changed[..., ::-1] if self.bgr else changed

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def _with_contrast(self, rgb: Image.Image) -> Image.Image:
        return rgb if self.contrast == 1.0 else ImageEnhance.Contrast(rgb).enhance(self.contrast)

    def _with_hue(self, rgb: Image.Image) -> Image.Image:
        hue, saturation, value = rgb.convert("HSV").split()
        # Hue is a circle: Pillow's 256 steps wrap around.
        turned = np.asarray(hue) + np.uint8(round(self.hue * 256 / 360) % 256)
        return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


class BlendedColorJitter(T.Augmentation):
    """`BlendedColorTransform` at random, each part with chance 1/2, in EoMT's ranges."""

    def __init__(
        self,
        bgr: bool = True,
        brightness: tuple[float, float] = (1 - 32 / 255, 1 + 32 / 255),
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: float = 18.0,
    ):
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        def draw(bounds: tuple[float, float], neutral: float) -> float:
            return self._rand_range(*bounds) if np.random.randint(2) else neutral

        return BlendedColorTransform(
            brightness=draw(self.brightness, 1.0),
            contrast=draw(self.contrast, 1.0),
            saturation=draw(self.saturation, 1.0),
            hue=draw((-self.hue, self.hue), 0.0),
            contrast_first=bool(np.random.randint(2)),
            bgr=self.bgr,
        )
