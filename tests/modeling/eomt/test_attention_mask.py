"""The attention mask of training: which entries it closes, and how often."""

from __future__ import annotations

import torch

from panoptic_ext.modeling.eomt.attention_mask import attention_mask

PREFIX = 5


def naive_mask(mask_logits):
    """Entry by entry: a query may not attend to a patch outside its mask."""
    batch, queries, height, width = mask_logits.shape
    patches = mask_logits.reshape(batch, queries, height * width)
    tokens = queries + PREFIX + height * width
    allowed = torch.ones(batch, tokens, tokens, dtype=torch.bool)
    for image in range(batch):
        for query in range(queries):
            for patch in range(height * width):
                if not patches[image, query, patch] > 0:
                    allowed[image, query, queries + PREFIX + patch] = False
    return allowed


def test_queries_attend_to_the_patches_in_their_masks():
    logits = torch.randn(2, 3, 2, 4)
    logits[0, 1] = -1  # an empty mask still attends to queries and prefix
    mask = attention_mask(logits, PREFIX, 1.0)
    assert mask.shape == (2, 1, 16, 16) and mask.dtype == torch.bool
    assert torch.equal(mask[:, 0], naive_mask(logits))


def test_a_logit_of_0_is_outside():
    mask = attention_mask(torch.zeros(1, 1, 1, 1), PREFIX, 1.0)
    assert not mask[0, 0, 0, -1]


def test_whole_rows_are_opened_at_random():
    """Each (image, query) by itself, with probability 1 - p: within 5 standard deviations."""
    torch.manual_seed(0)
    probability, count = 0.3, 4 * 500
    mask = attention_mask(torch.full((4, 500, 2, 2), -1.0), 1, probability)[:, 0, :500, 501:]
    masked = ~mask.any(-1)
    assert torch.equal(masked, ~mask.all(-1))  # never a part of a row
    deviation = (count * probability * (1 - probability)) ** 0.5
    assert abs(int(masked.sum()) - count * probability) < 5 * deviation
    assert len({tuple(row.tolist()) for row in masked}) == 4  # images differ


def test_without_annealing_nothing_is_drawn():
    logits = torch.randn(1, 3, 2, 2)
    state = torch.get_rng_state()
    attention_mask(logits, PREFIX, 1.0)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_gradient_flows_through():
    logits = torch.randn(1, 2, 2, 2, requires_grad=True)
    assert not attention_mask(logits, PREFIX, 0.5).requires_grad
