"""Number of GPU operations of the losses; a step once launched 2082 small ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from panoptic_ext.modeling.mask_classification import query_masks
from panoptic_ext.modeling.mask_classification.criterion import SetCriterion
from panoptic_ext.modeling.mask_classification.matcher import HungarianMatcher
from panoptic_ext.modeling.mask_classification.placed_criterion import PlacedCriterion
from panoptic_ext.modeling.mask_classification.targets import IdMapTargets, MaskTargets
from panoptic_ext.modeling.transformer_decoder.outputs import (
    DecoderOutputs,
    Places,
    Predictions,
    QueryMasks,
)
from tests.operation_counts import OperationCounts

CLASSES, QUERIES, POINTS = 5, 12, 32


def make(outputs: int, images: int) -> tuple[DecoderOutputs, list[MaskTargets], list[torch.Tensor]]:
    """Outputs of a decoder, targets of 0, 3, 6, ... objects, and leaves that get a gradient."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    features = draw(images, 8, 8, 8)
    leaves = [features]
    every = []
    for _ in range(outputs):
        embed, logits = draw(images, QUERIES, 8), draw(images, QUERIES, CLASSES + 1)
        every.append((logits, QueryMasks(embed, features)))
        leaves += [embed, logits]
    targets = []
    for image in range(images):
        ids = torch.randint(0, 3 * image + 1, (32, 32), generator=generator, dtype=torch.int32)
        targets.append(IdMapTargets(torch.arange(3 * image) % CLASSES, ids))
    aux_outputs = tuple(Predictions(*each) for each in every[1:])
    return DecoderOutputs(*every[0], aux_outputs), targets, leaves


def make_criterion(**matching: bool) -> SetCriterion:
    matcher = HungarianMatcher(num_points=POINTS, **matching)
    return SetCriterion(CLASSES, matcher, {}, 0.1, POINTS, 3.0, 0.75)


def count(outputs: int, images: int, **matching: bool) -> tuple[OperationCounts, OperationCounts]:
    """Count the operations of the losses and of their gradients."""
    predictions, targets, _ = make(outputs, images)
    with OperationCounts() as forward:
        losses = make_criterion(**matching)(predictions, targets)
    total = sum(losses.values())
    with OperationCounts() as backward:
        total.backward()
    return forward, backward


@pytest.mark.parametrize("shared_points", [False, True])
def test_the_losses_take_few_operations_however_many_outputs_there_are(shared_points):
    forward, backward = count(10, 2, shared_points=shared_points)
    assert forward.operations < 420 and backward.operations < 120  # published: 1518 and 300
    fewer, _ = count(2, 2, shared_points=shared_points)
    assert forward.operations - fewer.operations <= 8  # a selection an image and output
    assert forward.waits == {} and backward.waits == {}
    assert forward.copies == {"cpu": 1}  # all costs at once


def test_placed_queries_make_the_host_wait_no_more_often():
    predictions, targets, _ = make(4, 2)
    maps = (torch.rand(2, channels, 8, 8).requires_grad_() for channels in (1, 4, CLASSES))
    centre_logits, boxes, semantic_logits = maps
    places = Places(torch.rand(2, QUERIES, 2), centre_logits, boxes)
    predictions = replace(predictions, semantic_logits=semantic_logits, places=places)
    for target in targets:
        target.isthing = torch.arange(len(target)) % 2 == 0
    criterion = PlacedCriterion(
        stuff_in_map=True,
        num_classes=CLASSES,
        matcher=HungarianMatcher(num_points=POINTS),
        weight_dict={},
        no_object_weight=0.1,
        num_points=POINTS,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
    )
    with OperationCounts() as counts:
        losses = criterion(predictions, targets)
    assert {"loss_sem_seg", "loss_centre", "loss_box"} < set(losses)
    assert counts.waits == {} and counts.copies == {"cpu": 1}


@pytest.mark.parametrize("shared_points", [False, True])
def test_outputs_one_by_one_or_together_have_the_same_losses(monkeypatch, shared_points):
    """All masks use the same points, because the order of the draws differs."""
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: _spread(shape))
    results = []
    for values in (1, 2**30):
        monkeypatch.setattr(query_masks, "_MAX_SHARED_VALUES_CPU", values)
        predictions, targets, leaves = make(3, 3)
        losses = make_criterion(shared_points=shared_points)(predictions, targets)
        sum(losses.values()).backward()
        results.append((losses, [leaf.grad for leaf in leaves]))
    (one, gradients), (joined, joined_gradients) = results
    assert list(one) == list(joined) and len(one) == 9
    for name in one:
        torch.testing.assert_close(joined[name], one[name], rtol=1e-5, atol=1e-6)
    for got, wanted in zip(joined_gradients, gradients, strict=True):
        assert wanted.abs().sum() > 0
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def _spread(shape: tuple[int, ...]) -> torch.Tensor:
    """The same points for each mask and each draw."""
    generator = torch.Generator().manual_seed(shape[-2])
    return torch.empty(shape[-2:]).uniform_(generator=generator).expand(shape).clone()
