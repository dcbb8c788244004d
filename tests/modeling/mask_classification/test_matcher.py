"""Matching: the assignment is the cheapest, and odd input gets a clear error."""

from __future__ import annotations

import itertools
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.errors import DatasetError, NonFiniteLossError
from panoptic_ext.modeling.mask_classification.matcher import HungarianMatcher
from panoptic_ext.modeling.mask_classification.targets import IdMapTargets
from panoptic_ext.modeling.transformer_decoder.outputs import Predictions


def stripes(count: int, labels: list[int] | None = None, image: str = "") -> IdMapTargets:
    """`count` vertical stripes, 4 pixels wide, 8 high; void beyond."""
    id_map = torch.arange(1, count + 2, dtype=torch.int32).repeat_interleave(4).repeat(8, 1)
    id_map[id_map > count] = 0
    chosen = torch.arange(count) if labels is None else torch.tensor(labels, dtype=torch.int64)
    return IdMapTargets(chosen, id_map, image=image)


def outputs_like(target: IdMapTargets, order: list[int], classes: int = 5) -> Predictions:
    """Query q predicts target order[q]; -1 predicts nothing."""
    masks = torch.full((len(order), *target.id_map.shape), -9.0)
    logits = torch.zeros(len(order), classes + 1)
    for query, row in enumerate(order):
        if row >= 0:
            masks[query][target.id_map == row + 1] = 9.0
            logits[query, target.labels[row]] = 9.0
        else:
            logits[query, -1] = 9.0
    return Predictions(logits[None], masks[None])


def test_right_queries_are_found_in_every_output_and_image():
    targets = [stripes(3), stripes(2)]
    orders = [[[2, -1, 0, 1], [-1, 1, -1, 0]], [[0, 1, 2, -1], [1, 0, -1, -1]]]
    outputs = []
    for per_image in orders:
        pairs = [outputs_like(t, order) for t, order in zip(targets, per_image, strict=True)]
        masks = [p.pred_masks[..., :12] for p in pairs]
        logits = torch.cat([p.pred_logits for p in pairs])
        outputs.append(Predictions(logits, torch.cat(masks)))
    targets = [IdMapTargets(t.labels, t.id_map[:, :12]) for t in targets]
    matches = HungarianMatcher(num_points=200)(outputs, targets)
    for per_image, matched in zip(orders, matches, strict=True):
        for order, (queries, rows) in zip(per_image, matched, strict=True):
            assert [order[q] for q in queries.tolist()] == rows.tolist()
            assert sorted(rows.tolist()) == [row for row in sorted(order) if row >= 0]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(0, 4), st.integers(0, 99))
def test_assignment_is_the_cheapest_of_all(queries, count, seed):
    generator = torch.Generator().manual_seed(seed)
    target = stripes(count)
    output = Predictions(
        torch.randn(1, queries, 6, generator=generator),
        torch.randn(1, queries, 8, 20, generator=generator),
    )
    matcher = HungarianMatcher(num_points=50)
    torch.manual_seed(seed)
    ((found,),) = matcher([output], [target])
    torch.manual_seed(seed)
    ((cost,),) = matcher._costs([output], [target])
    pairs = min(queries, count)
    assert len(found[0]) == len(found[1]) == pairs
    best = min(
        sum(float(cost[q, n]) for q, n in zip(chosen, rows, strict=True))
        for chosen in itertools.permutations(range(queries), pairs)
        for rows in itertools.combinations(range(count), pairs)
    )
    assert float(cost[found].sum()) == pytest.approx(best, abs=1e-4)


def test_surplus_objects_are_logged_once(caplog):
    target = stripes(4, image="street.jpg")
    output = outputs_like(target, [3, 1])
    matcher = HungarianMatcher(num_points=100)
    with caplog.at_level(logging.WARNING):
        ((found,),) = matcher([output], [target])
        matcher([output], [target])
    assert found[1].tolist() == [3, 1]
    assert len(caplog.messages) == 1
    for part in ("street.jpg", "4 objects", "2 queries", "NUM_OBJECT_QUERIES"):
        assert part in caplog.messages[0]


@pytest.mark.parametrize("label", [5, -1, 255])
def test_label_outside_the_classes_names_the_image(label):
    target = stripes(2, [0, label], image="street.jpg")
    output = outputs_like(stripes(2), [0, 1])
    with pytest.raises(DatasetError, match=rf"street\.jpg has label {label}; expected 0 to 4"):
        HungarianMatcher(num_points=10)([output], [target])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("key", "term"), [("pred_logits", "classification"), ("pred_masks", "mask")]
)
def test_non_finite_cost_names_the_term_and_the_output(bad, key, term):
    good = outputs_like(stripes(2, image="a.jpg"), [0, 1])
    broken = Predictions(good.pred_logits.clone(), good.pred_masks.clone())
    getattr(broken, key)[:, 1] = bad
    with pytest.raises(NonFiniteLossError, match=rf"a\.jpg in decoder output 1 .* {term}"):
        HungarianMatcher(num_points=20)([good, broken], [stripes(2, image="a.jpg")])


# The published matcher draws anew for each output.
@pytest.mark.parametrize("shared", [False, True])
def test_outputs_share_their_points_only_where_asked_to(shared):
    target = stripes(3)
    output = Predictions(torch.randn(1, 4, 6), torch.randn(1, 4, 8, 16))
    matcher = HungarianMatcher(num_points=20, shared_points=shared)
    ((first, second),) = matcher._costs([output, output], [target])
    assert torch.equal(first, second) == shared


def test_half_precision_predictions_match_as_well():
    target = stripes(2)
    exact = outputs_like(target, [1, 0])
    output = Predictions(exact.pred_logits.bfloat16(), exact.pred_masks.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ((found,),) = HungarianMatcher(num_points=50)([output], [target])
    assert found[1].tolist() == [1, 0]
