"""The sine embedding against its formula, and what callers may rely on."""

import math

import pytest
import torch

from panoptic_ext.modeling.layers.position_encoding import sine_position_embedding


def test_equals_the_formula_element_by_element():
    height, width, channels = 3, 5, 8
    found = sine_position_embedding(height, width, channels)
    assert found.shape == (1, channels, height, width)
    for y in range(height):
        for x in range(width):
            for half, place in enumerate(((y + 1) / height, (x + 1) / width)):
                for i in range(channels // 2):
                    angle = place * 2 * math.pi / 10000 ** (2 * (i // 2) / (channels // 2))
                    expected = math.cos(angle) if i % 2 else math.sin(angle)
                    channel = half * channels // 2 + i
                    assert found[0, channel, y, x].item() == pytest.approx(expected, abs=1e-5)


def test_is_kept_and_serves_training_after_inference_mode():
    with torch.inference_mode():
        first = sine_position_embedding(7, 3, 12)
    assert sine_position_embedding(7, 3, 12) is first
    weight = torch.ones((), requires_grad=True)
    (first * weight).sum().backward()
    torch.testing.assert_close(weight.grad, first.sum())


def test_channels_must_be_a_multiple_of_four():
    with pytest.raises(ValueError, match="multiple of 4 channels, got 6"):
        sine_position_embedding(2, 2, 6)
