"""Batches of images: padding with the mean or with black, to a common size or to a square."""

from __future__ import annotations

import pytest
import torch
from detectron2.structures import ImageList
from hypothesis import given
from hypothesis import strategies as st

from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.meta_arch.image_batch import normalised_batch

MEAN = torch.tensor([123.675, 116.28, 103.53]).view(-1, 1, 1)
STD = torch.tensor([58.395, 57.12, 57.375]).view(-1, 1, 1)
SIZES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=3)


def images_of(sizes, dtype=torch.uint8):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, *size), generator=generator).to(dtype) for size in sizes]


def batch_of(images, **options):
    return normalised_batch(images, pixel_mean=MEAN, pixel_std=STD, **options)


def naive(images, *, size_divisibility, pad_black, square):
    """Fill a batch with the padding, image by image."""
    step = max(1, size_divisibility)
    height, width = (
        max(square, *(-(-image.shape[axis] // step) * step for image in images)) for axis in (1, 2)
    )
    height, width = (-(-side // step) * step for side in (height, width))
    value = -MEAN / STD if pad_black else torch.zeros_like(MEAN)
    out = value.expand(len(images), 3, height, width).clone()
    for target, image in zip(out, images, strict=True):
        target[:, : image.shape[1], : image.shape[2]] = (image.float() - MEAN) / STD
    return out


@given(SIZES, st.sampled_from([0, 1, 16]), st.booleans(), st.sampled_from([0, 40, 41]))
def test_equals_the_naive_batch(sizes, divisor, black, square) -> None:
    options = {"size_divisibility": divisor, "pad_black": black, "square": square}
    for dtype in (torch.uint8, torch.float32):
        images = images_of(sizes, dtype)
        batch = batch_of(images, **options)
        assert batch.image_sizes == sizes
        assert torch.equal(batch.tensor, naive(images, **options))


def test_by_default_bit_for_bit_that_of_detectron2() -> None:
    images = images_of([(20, 31), (33, 18)])
    expected = ImageList.from_tensors([(image - MEAN) / STD for image in images], 32)
    assert torch.equal(batch_of(images, size_divisibility=32).tensor, expected.tensor)


def test_an_image_larger_than_the_square() -> None:
    with pytest.raises(ConfigError, match=r"32 x 32 .*an image of 20 x 33 .*'longest_side'"):
        batch_of(images_of([(20, 30), (20, 33)]), size_divisibility=16, square=32)
