"""Costs and losses against the definitions, written one number at a time, and reference vectors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from panoptic_ext.modeling.mask_classification.losses import (
    balanced_weights,
    box_loss,
    centre_loss,
    class_cost,
    classification_loss,
    empty_class_weight,
    mask_costs,
    point_dice_losses,
    point_mask_losses,
    semantic_loss,
)
from tests.mask2former_reference import reference_arrays, reference_json
from tests.modeling.mask_classification import naive_mask_losses as naive


def total_cost(class_logits, labels, mask_logits, targets):
    bce, dice = mask_costs(mask_logits, targets)
    return 2 * class_cost(class_logits, labels) + 5 * bce + 5 * dice


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 5), st.integers(0, 4), st.integers(1, 6), st.integers(1, 9),
    st.sampled_from([0.1, 3.0, 40.0]), st.integers(0, 99),
)  # fmt: skip
def test_costs_and_losses_equal_the_naive_ones(queries, count, classes, points, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    class_logits = torch.randn(queries, classes + 1, generator=generator) * 3
    mask_logits = torch.randn(queries, points, generator=generator) * scale
    targets = torch.rand(count, points, generator=generator)
    labels = torch.randint(0, classes, (count,), generator=generator)
    arrays = [t.numpy() for t in (class_logits, labels, mask_logits, targets)]
    expected = naive.cost_matrix(*arrays)
    found = total_cost(class_logits, labels, mask_logits, targets)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)

    every_class = torch.randint(0, classes + 1, (queries,), generator=generator)
    loss = classification_loss(
        class_logits[None], every_class[None], empty_class_weight(classes, 0.1)
    )
    assert loss.item() == pytest.approx(
        naive.class_loss(class_logits.numpy(), every_class.numpy(), 0.1), rel=1e-5, abs=1e-6
    )
    pairs = list(zip(mask_logits[:count].numpy(), targets.numpy(), strict=False))
    matched = (mask_logits[: len(pairs)], targets[: len(pairs)])
    assert point_mask_losses(*matched).sum().item() / 3 == pytest.approx(
        sum(naive.mask_term(x, t) for x, t in pairs) / 3, rel=2e-5, abs=1e-6
    )
    assert point_dice_losses(*matched).sum().item() / 3 == pytest.approx(
        sum(naive.dice_term(x, t) for x, t in pairs) / 3, rel=2e-5, abs=1e-6
    )


def test_reference_costs_assignments_and_losses():
    arrays = reference_arrays("matching_and_losses")
    for case in reference_json("matching_and_losses"):
        number = case["case"]
        names = ("class_logits", "labels", "mask_points", "target_points")
        class_logits, labels, masks, targets = (arrays[f"{number}_{name}"] for name in names)
        cost = total_cost(class_logits, labels, masks, targets)
        torch.testing.assert_close(cost, arrays[f"{number}_cost"], rtol=1e-5, atol=1e-5)
        queries, rows = linear_sum_assignment(cost)
        assert queries.tolist() == arrays[f"{number}_rows"].tolist()
        assert rows.tolist() == arrays[f"{number}_cols"].tolist()

        classes = torch.full((len(class_logits),), case["classes"])
        classes[queries] = labels[rows]
        weight = empty_class_weight(case["classes"], 0.1)
        found = (
            classification_loss(class_logits[None], classes[None], weight),
            point_mask_losses(masks[queries], targets[rows]).sum() / case["num_masks"],
            point_dice_losses(masks[queries], targets[rows]).sum() / case["num_masks"],
        )
        expected = [case[f"{name}_loss"] for name in ("class", "mask", "dice")]
        assert [loss.item() for loss in found] == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_no_mask_gives_zero_with_a_gradient():
    logits = torch.zeros(0, 5, requires_grad=True)
    targets = torch.zeros(0, 5)
    loss = point_mask_losses(logits, targets).sum() + point_dice_losses(logits, targets).sum()
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None


@pytest.mark.parametrize("objects", [0, 1])
def test_class_loss_without_a_weight_of_no_object(objects):
    """Without an object the weights sum to 0: the loss is 0 with a gradient of 0, not NaN."""
    logits = torch.tensor([[[2.0, 1.0, -1.0], [0.5, 3.0, 60.0]]], requires_grad=True)
    classes = torch.tensor([[0 if objects else 2, 2]])
    loss = classification_loss(logits, classes, empty_class_weight(2, 0.0))
    loss.backward()
    expected = -logits[0, 0].log_softmax(0)[0].item() if objects else 0.0
    assert loss.item() == pytest.approx(expected)
    assert bool(logits.grad[0, 0].any()) == bool(objects)
    assert not logits.grad[0, 1].any()


def test_a_perfect_mask_costs_nothing():
    targets = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]])
    bce, dice = mask_costs((targets * 2 - 1) * 100, targets)
    torch.testing.assert_close(bce.diagonal(), torch.zeros(2))
    torch.testing.assert_close(dice.diagonal(), torch.zeros(2))
    assert bce[0, 1] == pytest.approx(100)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_centre_loss_equals_naive_one(height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(2, 1, height, width, generator=generator)
    targets = torch.rand(2, 1, height, width, generator=generator)
    total = 0.0
    for x, t in zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        total -= (p - t) ** 2 * (t * math.log(p) + (1 - t) * math.log(1 - p))
    expected = total / max(targets.sum().item(), 1.0)
    assert math.isclose(centre_loss(logits, targets).item(), expected, rel_tol=1e-4)


def test_box_loss_is_the_relative_error_of_cells_with_a_weight():
    truth = torch.tensor([0.5, 0.4, 0.1, 0.2])[None, :, None, None].expand(1, 4, 1, 2)
    wrong = torch.tensor([0.55, 0.4, 0.1, 0.2 * math.e])[None, :, None, None].expand(1, 4, 1, 2)
    weights = torch.tensor([[[[1.0, 0.0]]]])
    boxes = torch.cat((wrong[..., :1], torch.full((1, 4, 1, 1), 9.0)), dim=-1)
    assert box_loss(boxes, truth, weights).item() == pytest.approx((0.5 + 1.0) / 4, rel=1e-5)
    assert box_loss(boxes, truth, torch.zeros(1, 1, 1, 2)).item() == 0


def test_centre_loss_without_any_object_is_finite_and_has_a_gradient():
    logits = torch.zeros(1, 1, 3, 3, requires_grad=True)
    centre_loss(logits, torch.zeros(1, 1, 3, 3)).backward()
    assert logits.grad.abs().min() > 0


@given(st.lists(st.integers(-1, 5), max_size=30), st.floats(0, 1), st.integers(0, 99))
def test_balanced_weights_of_all_labels_add_up_to_their_number(labels, balance, seed):
    weights = balanced_weights(torch.tensor(labels, dtype=torch.int64), 5, balance)
    counted = [label for label in labels if 0 <= label < 5]
    assert weights[counted].sum().item() == pytest.approx(len(counted), rel=1e-4)
    for label in range(5):
        if label not in counted:
            assert weights[label] == 1
        for other in counted:
            ratio = (
                (counted.count(label) / counted.count(other)) ** -balance if label in counted else 0
            )
            assert not ratio or weights[label] / weights[other] == pytest.approx(ratio, rel=1e-4)


def test_a_balanced_semantic_loss_is_the_mean_over_classes():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, 5, generator=generator)
    labels = torch.randint(-1, 3, (2, 3, 5), generator=generator)
    entropy = -logits.log_softmax(1)
    of_classes = [entropy[:, label][labels == label].mean() for label in range(3)]
    torch.testing.assert_close(semantic_loss(logits, labels, 1.0), torch.stack(of_classes).mean())
    plain = torch.cat([entropy[:, label][labels == label] for label in range(3)]).mean()
    torch.testing.assert_close(semantic_loss(logits, labels), plain)
    void = torch.full_like(labels, -1)
    assert semantic_loss(logits, void, 0.5) == 0
