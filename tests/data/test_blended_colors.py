"""Blended colours against torchvision's functions, and the ranges of the jitter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from torchvision.transforms import functional as TF

from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.data.augmentation import build_augmentations
from panoptic_ext.data.blended_colors import BlendedColorJitter, BlendedColorTransform
from panoptic_ext.errors import ConfigError
from tests.tiny.finished_run import picture

RGB = np.asarray(picture(3, 60, 80))


def torchvision(brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0, contrast_first=True):
    """(60, 80, 3) of torchvision's functions on tensors."""
    image = torch.as_tensor(RGB.transpose(2, 0, 1).copy())
    image = TF.adjust_brightness(image, brightness)
    image = TF.adjust_contrast(image, contrast) if contrast_first else image
    image = TF.adjust_hue(TF.adjust_saturation(image, saturation), hue / 360)
    image = image if contrast_first else TF.adjust_contrast(image, contrast)
    return image.numpy().transpose(1, 2, 0).astype(int)


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"brightness": 0.88},
        {"contrast": 0.5},
        {"contrast": 1.5, "brightness": 1.12},
        {"saturation": 1.5},
        {"saturation": 0.5, "contrast": 1.4, "contrast_first": False},
        {"hue": 18.0},
        {"hue": -14.0, "saturation": 0.7, "contrast": 0.8, "contrast_first": False},
    ],
)
def test_parts_are_those_of_torchvision(parts: dict[str, Any], bgr: bool) -> None:
    image = RGB[..., ::-1] if bgr else RGB
    found = BlendedColorTransform(**parts, bgr=bgr).apply_image(image)
    assert found.dtype == np.uint8
    difference = np.abs((found[..., ::-1] if bgr else found) - torchvision(**parts))
    # Rounding in each step, and Pillow's 256 steps of hue and saturation.
    assert difference.mean() < 1 and difference.max() <= (8 if "hue" in parts else 2)


def test_ranges_and_chances() -> None:
    np.random.seed(0)
    drawn = [BlendedColorJitter().get_transform(RGB) for _ in range(400)]
    for name, low, high, neutral in (
        ("brightness", 0.8745, 1.1255, 1.0),
        ("contrast", 0.5, 1.5, 1.0),
        ("saturation", 0.5, 1.5, 1.0),
        ("hue", -18.0, 18.0, 0.0),
    ):
        values = np.array([getattr(transform, name) for transform in drawn])
        span = high - low
        assert low <= values.min() < low + 0.05 * span
        assert high - 0.05 * span < values.max() <= high
        assert 0.4 < (values == neutral).mean() < 0.6
    assert 0.4 < np.mean([transform.contrast_first for transform in drawn]) < 0.6


def test_the_whole_image_is_changed_before_it_is_cropped() -> None:
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.INPUT.COLOR_AUG_SSD, cfg.INPUT.COLOR_AUG_RULE = True, "torchvision"
    cfg.INPUT.AUGMENTATION, cfg.INPUT.FORMAT = "lsj", "RGB"
    first, *others = build_augmentations(cfg, True)
    assert isinstance(first, BlendedColorJitter) and not first.bgr
    assert not any(isinstance(other, BlendedColorJitter) for other in others)
    cfg.INPUT.COLOR_AUG_SSD = False
    assert not isinstance(build_augmentations(cfg, True)[0], BlendedColorJitter)
    cfg.INPUT.COLOR_AUG_RULE = "sdd"
    with pytest.raises(ConfigError, match=r"INPUT\.COLOR_AUG_RULE 'sdd'.*did you mean 'ssd'"):
        build_augmentations(cfg, True)
