"""Config keys of training images: crops around things, and copy-paste."""

from __future__ import annotations

from detectron2.config import CfgNode as CN

__all__ = ["add_training_image_keys"]


def add_training_image_keys(cfg: CN) -> None:
    """Add INPUT.CROP_AROUND_THINGS and INPUT.COPY_PASTE to a config."""
    # Crops around a random thing, enlarged where it is small, in place of the ordinary scale and
    # crop (INPUT.AUGMENTATION, INPUT.CROP). The window keeps the ordinary size.
    cfg.INPUT.CROP_AROUND_THINGS = CN()
    # Chance of such a crop, 0 to 1; 0: none. Images without a thing, and
    # those without a label map, get ordinary ones.
    cfg.INPUT.CROP_AROUND_THINGS.PROBABILITY = 0.0
    # Which thing. "size": with chances inverse to the sizes, the square roots of the areas.
    # "class": a class of the image first, each with the same chance, then a thing of it. "thing":
    # each with the same chance.
    cfg.INPUT.CROP_AROUND_THINGS.DRAW_BY = "size"
    # Least and largest wanted size of the thing in the crop, pixels: the square root of its area. A
    # thing that the ordinary scale makes smaller is enlarged to a random size between them; none is
    # made smaller. COCO's limits of small and large objects are 32 and 96.
    cfg.INPUT.CROP_AROUND_THINGS.SIZES = [32.0, 96.0]
    # Largest scale of the enlarged image, in terms of its pixels on disk.
    cfg.INPUT.CROP_AROUND_THINGS.MAX_ENLARGEMENT = 2.0

    # Things of a second image, which is augmented on its own, are pasted into augmented images
    # (Ghiasi et al., Simple Copy-Paste, CVPR 2021). Only images with a label map give and get
    # things.
    cfg.INPUT.COPY_PASTE = CN()
    # Chance that an image gets things, 0 to 1; 0: none.
    cfg.INPUT.COPY_PASTE.PROBABILITY = 0.0
    # Names of the things that are copied; []: all. Crowds are never copied.
    cfg.INPUT.COPY_PASTE.CLASSES = []
    # The second image. "image": each with the same chance. "class": a class first, each with the
    # same chance, then an image with it, of which things of this class alone are copied: things of
    # rare classes are then pasted as often as common ones.
    cfg.INPUT.COPY_PASTE.DRAW_BY = "image"
    # Largest number of things that are pasted. Their number is drawn evenly from 1 to the number of
    # things in the second image, or to this. 0: no limit, as in the paper.
    cfg.INPUT.COPY_PASTE.MAX_THINGS = 0
    # A thing becomes void if pasted ones leave less than this share of its pixels, 0 to 1. Without
    # any pixel left it vanishes in any case.
    cfg.INPUT.COPY_PASTE.MIN_VISIBLE = 0.0
    # Standard deviation of the Gaussian filter that softens edges of pasted things in the image,
    # pixels; 0: sharp edges. The paper finds no difference.
    cfg.INPUT.COPY_PASTE.BLUR = 0.0
