"""Cross-entropy over the worst pixels against loops over pixels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from panoptic_ext.modeling.semantic_head.hard_pixel_loss import hard_pixel_cross_entropy

VOID = 255


def naive(logits, targets, fraction):
    """Pixels one by one, in numpy: sorted losses of each image, the first of them averaged."""
    per_image = []
    for image, labels in zip(logits.double().numpy(), targets.numpy(), strict=True):
        losses = []
        for y, x in np.ndindex(labels.shape):
            if labels[y, x] != VOID:
                scores = image[:, y, x]
                losses.append(math.log(sum(math.exp(s) for s in scores)) - scores[labels[y, x]])
        worst = sorted(losses, reverse=True)[: math.ceil(fraction * len(losses))]
        per_image.append(sum(worst) / len(worst) if worst else 0.0)
    return sum(per_image) / len(per_image)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    fraction=st.sampled_from([0.01, 0.25, 0.5, 1.0]),
    void=st.sampled_from([0.0, 0.3, 0.95, 1.0]),
    images=st.integers(1, 3),
)
def test_it_equals_loops_over_pixels(seed, fraction, void, images):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(images, 4, 5, 6, generator=generator)
    targets = torch.randint(0, 4, (images, 5, 6), generator=generator)
    targets[torch.rand(images, 5, 6, generator=generator) < void] = VOID
    found = hard_pixel_cross_entropy(logits, targets, fraction=fraction, ignore_value=VOID)
    assert found.item() == pytest.approx(naive(logits, targets, fraction), rel=1e-5, abs=1e-7)


def test_all_pixels_are_the_mean_over_an_image():
    logits, targets = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 4, 4))
    found = hard_pixel_cross_entropy(logits, targets, fraction=1.0, ignore_value=VOID)
    torch.testing.assert_close(found, F.cross_entropy(logits, targets))


def test_only_the_worst_pixels_get_a_gradient():
    logits = torch.zeros(1, 2, 1, 8)
    logits[0, 0, 0] = torch.arange(8.0)  # class 1 is right: the loss grows with the column
    logits.requires_grad_()
    targets = torch.ones(1, 1, 8, dtype=torch.int64)
    hard_pixel_cross_entropy(logits, targets, fraction=0.25, ignore_value=VOID).backward()
    assert logits.grad.abs().sum(dim=(0, 1, 2)).nonzero().flatten().tolist() == [6, 7]


def test_void_and_empty_batches_give_zero_and_a_gradient_of_zero():
    for size in ((2, 3, 4, 4), (0, 3, 4, 4)):
        logits = torch.randn(size, requires_grad=True)
        targets = torch.full((size[0], 4, 4), VOID)
        loss = hard_pixel_cross_entropy(logits, targets, fraction=0.25, ignore_value=VOID)
        loss.backward()
        assert loss.item() == 0 and not logits.grad.any()


def test_an_image_of_void_halves_the_mean_and_half_precision_is_summed_in_full():
    logits, targets = torch.randn(2, 3, 64, 64), torch.randint(0, 3, (2, 64, 64))
    options = {"fraction": 0.25, "ignore_value": VOID}
    alone = hard_pixel_cross_entropy(logits[:1], targets[:1], **options)
    targets[1] = VOID
    torch.testing.assert_close(hard_pixel_cross_entropy(logits, targets, **options), alone / 2)
    half = hard_pixel_cross_entropy(logits.half(), targets, **options)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, alone / 2, rtol=1e-2, atol=0)
