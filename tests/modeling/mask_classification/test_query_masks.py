"""Masks computed only where the loss reads them equal masks computed everywhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.modeling.mask_classification import query_masks
from panoptic_ext.modeling.mask_classification.bilinear import sample_at_common_points
from panoptic_ext.modeling.mask_classification.criterion import SetCriterion
from panoptic_ext.modeling.mask_classification.matcher import HungarianMatcher
from panoptic_ext.modeling.mask_classification.query_masks import (
    masks_at_points,
    matched_masks,
)
from panoptic_ext.modeling.mask_classification.targets import IdMapTargets, MaskTargets
from panoptic_ext.modeling.transformer_decoder.outputs import (
    DecoderOutputs,
    Predictions,
    QueryMasks,
)

CLASSES, CHANNELS = 4, 6


def make(
    batch: int,
    queries: int,
    size: tuple[int, int],
    outputs: int,
    seed: int,
    dtype=None,
    maps: int = 1,
):
    """The same predictions twice: as dense masks and as products, each with leaves of its own.

    The outputs share `maps` feature maps, consecutive ones the same.
    """
    generator = torch.Generator().manual_seed(seed)
    maps = min(maps, outputs)
    features = torch.randn(maps, batch, CHANNELS, *size, generator=generator)
    both = []
    embeds = [torch.randn(batch, queries, CHANNELS, generator=generator) for _ in range(outputs)]
    logits = [torch.randn(batch, queries, CLASSES + 1, generator=generator) for _ in range(outputs)]
    for lazy in (False, True):
        shared = [of_map.to(dtype).clone().requires_grad_() for of_map in features]
        own = [embed.to(dtype).clone().requires_grad_() for embed in embeds]
        each = [QueryMasks(embed, shared[i * maps // outputs]) for i, embed in enumerate(own)]
        masks = each if lazy else [m.dense() for m in each]
        first, *others = zip(logits, masks, strict=True)
        predictions = DecoderOutputs(*first, tuple(Predictions(*each) for each in others))
        both.append((predictions, [*shared, *own]))
    return both


def make_targets(batch: int, size: tuple[int, int], most: int, seed: int) -> list[MaskTargets]:
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for image in range(batch):
        count = (most + image) % (most + 1)
        ids = torch.randint(0, count + 1, size, generator=generator, dtype=torch.int32)
        labels = torch.randint(0, CLASSES, (count,), generator=generator)
        targets.append(IdMapTargets(labels, ids))
    return targets


def loss_and_gradients(outputs, leaves, targets, seed):
    criterion = SetCriterion(
        CLASSES, HungarianMatcher(num_points=40), {}, 0.1, 24, oversample_ratio=3.0,
        importance_sample_ratio=0.75,
    )  # fmt: skip
    torch.manual_seed(seed)
    losses = criterion(outputs, targets)
    sum(losses[name] for name in losses if "ce" not in name).backward()
    return losses, [leaf.grad for leaf in leaves]


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    queries=st.integers(1, 7),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    outputs=st.integers(1, 3),
    maps=st.integers(1, 3),
    most=st.integers(0, 9),
    seed=st.integers(0, 2**16),
)
def test_losses_and_gradients_are_those_of_dense_masks(
    batch, queries, size, outputs, maps, most, seed
):
    targets = make_targets(batch, (4 * size[0], 4 * size[1]), most, seed)
    found = [
        loss_and_gradients(*side, targets, seed)
        for side in make(batch, queries, size, outputs, seed, maps=maps)
    ]
    (dense, dense_grads), (lazy, lazy_grads) = found
    assert dense.keys() == lazy.keys()
    for name in dense:
        torch.testing.assert_close(lazy[name], dense[name], rtol=2e-4, atol=2e-5)
    for got, wanted in zip(lazy_grads, dense_grads, strict=True):
        assert got is not None
        torch.testing.assert_close(got, wanted, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("values", [1, 2**20], ids=["one by one", "together"])
@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("maps", [1, 2])
def test_sampled_masks(monkeypatch, draws, values, maps):
    monkeypatch.setattr(query_masks, "_MAX_SHARED_VALUES_CPU", values)
    (dense, _), (lazy, _) = make(2, 5, (6, 8), 2, 3, maps=maps)
    points = torch.rand(draws, 30, 2)
    every = dense.predictions
    blocks = masks_at_points(lazy.predictions, 1, points)
    assert len(blocks) == (2 if values == 1 or maps == 2 else 1)
    found, also = torch.cat(blocks), torch.cat(masks_at_points(every, 1, points))
    for number, output in enumerate(every):
        wanted = sample_at_common_points(output.pred_masks[1], points[number % draws])
        torch.testing.assert_close(also[number], wanted)
        torch.testing.assert_close(found[number], wanted, rtol=1e-4, atol=1e-5)
        assert found[number].shape == (5, 30) and not found.requires_grad


@pytest.mark.parametrize("maps", [1, 2])
def test_matched_masks(maps):
    (dense, _), (lazy, _) = make(2, 5, (6, 8), 2, 3, maps=maps)
    first, second = (output.pred_masks for output in dense.predictions)
    # Two matches of the first image, one of the second; the second output begins at 2 * 5.
    rows = [torch.tensor([4, 0, 12, 13]), torch.tensor([7, 15])]
    wanted = [
        torch.stack([first[0, 4], first[0, 0], second[0, 2], second[0, 3]]),
        torch.stack([first[1, 2], second[1, 0]]),
    ]
    for side in (lazy, dense):
        every = side.predictions
        for got, expected in zip(matched_masks(every, rows), wanted, strict=True):
            torch.testing.assert_close(got, expected)
        (nothing, _) = matched_masks(every, [rows[0][:0], rows[1]])
        assert nothing.shape == (0, 6, 8) and nothing.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    """Masks are products in the dtype of the embeddings; everything after them is float32."""
    both = make(1, 4, (5, 5), 1, 0, dtype=dtype)
    targets = make_targets(1, (20, 20), 3, 0)
    (dense, wanted), (lazy, found) = (loss_and_gradients(*side, targets, 1) for side in both)
    for name in dense:
        assert lazy[name].dtype == torch.float32
        torch.testing.assert_close(lazy[name], dense[name], rtol=0.05, atol=0.05)
    assert all(torch.isfinite(grad).all() for grad in [*wanted, *found])


@pytest.mark.parametrize("rows", [[2, 0], []])
def test_features_and_embeddings_of_different_types(rows):
    """A user's pixel decoder may stay in float32 under autocast."""
    features = torch.randn(1, CHANNELS, 4, 4, requires_grad=True)
    embed = torch.randn(1, 3, CHANNELS, dtype=torch.bfloat16, requires_grad=True)
    outputs = [Predictions(torch.zeros(1, 3, CLASSES + 1), QueryMasks(embed, features))]
    (masks,) = matched_masks(outputs, [torch.tensor(rows, dtype=torch.int64)])
    assert masks.dtype == torch.float32 and masks.shape == (len(rows), 4, 4)
    masks.sum().backward()
    assert features.grad is not None and embed.grad is not None
