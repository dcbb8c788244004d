"""Rows of classes in layers of any order, against a naive loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from panoptic_ext.modeling.layers.class_layer import ClassLayer
from panoptic_ext.modeling.meta_arch.class_rows import class_layers_of, move_rows


class Head(nn.Module):
    """One linear layer whose rows are of classes."""

    def __init__(self, rows: int, layer: ClassLayer) -> None:
        super().__init__()
        self.class_layers = {"classify.0": layer}
        self.classify = nn.Sequential(nn.Linear(2, rows))


def row_classes(isthing: list[bool], order: str) -> list[list[int]]:
    """The classes of each row, without rows of others."""
    things = [k for k, thing in enumerate(isthing) if thing]
    stuff = [k for k, thing in enumerate(isthing) if not thing]
    if order == "separated":
        return [things, *([k] for k in stuff)]
    return [[k] for k in (things if order == "things" else range(len(isthing)))]


def rows_of(isthing: list[bool], order: str, layer: ClassLayer) -> int:
    return len(row_classes(isthing, order)) * layer.rows + layer.others


@given(
    isthing=st.lists(st.booleans(), min_size=1, max_size=6),
    old_isthing=st.lists(st.booleans(), min_size=1, max_size=6),
    orders=st.sampled_from([("all", "all"), ("things", "things"), ("all", "things"),
                            ("things", "all"), ("all", "separated")]),
    others=st.integers(0, 2),
    rows=st.sampled_from([1, 4]),
    seed=st.integers(0, 2**16),
)  # fmt: skip
@settings(deadline=None, max_examples=80)
def test_rows_equal_a_naive_loop(
    isthing: list[bool],
    old_isthing: list[bool],
    orders: tuple[str, str],
    others: int,
    rows: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    mine, its = orders
    # Only the two orders that the layer is to have, so that no third one fits by chance.
    layer = ClassLayer(others, rows, tuple(dict.fromkeys(orders)))
    if mine != its:  # ambiguous numbers of rows mean the first order
        for kinds, order in ((isthing, mine), (old_isthing, its)):
            if rows_of(kinds, layer.orders[0], layer) == rows_of(kinds, order, layer):
                return
    source = [
        None if rng.random() < 0.3 else int(j)
        for j in rng.integers(len(old_isthing), size=len(isthing))
    ]
    torch.manual_seed(seed)
    count = max(rows_of(isthing, mine, layer), 0), max(rows_of(old_isthing, its, layer), 0)
    if not all(count):
        return
    model, old = Head(count[0], layer), Head(count[1], layer)
    weights = dict(old.state_dict())
    moved = move_rows(
        weights, model, isthing=isthing, isthing_of_weights=old_isthing, source=source
    )
    of_row, of_old_row = row_classes(isthing, mine), row_classes(old_isthing, its)
    for name, own in model.state_dict().items():
        expected = own.clone()
        for row, (k,) in enumerate(of_row):
            for old_row, classes in enumerate(of_old_row):
                if source[k] in classes:
                    for i in range(rows):
                        expected[row * rows + i] = old.state_dict()[name][old_row * rows + i]
        for i in range(others):
            expected[-1 - i] = old.state_dict()[name][-1 - i]
        assert torch.equal(weights[name], expected)
    kept = {k for (k,) in of_row if any(source[k] in classes for classes in of_old_row)}
    assert set(moved[0].kept) == kept
    assert set(moved[0].fresh) == {k for (k,) in of_row} - kept


@pytest.mark.parametrize("rows", [5, 9])
def test_a_layer_that_does_not_fit_the_classes_is_left(rows: int) -> None:
    layer = ClassLayer(others=1)
    weights = dict(Head(rows, layer).state_dict())
    before = {name: tensor.clone() for name, tensor in weights.items()}
    model = Head(4, layer)
    options = {"isthing": [True] * 3, "isthing_of_weights": [True] * 6}
    assert move_rows(weights, model, source=[0, 1, 2], **options) == []
    assert all(torch.equal(weights[name], before[name]) for name in weights)
    del weights["classify.0.weight"], weights["classify.0.bias"]  # a file of a backbone
    assert move_rows(weights, model, source=[0, 1, 2], **options) == []


def test_names_of_layers_inside_a_model() -> None:
    model = nn.Sequential(nn.Identity(), Head(3, ClassLayer()))
    assert list(class_layers_of(model)) == [("1.classify.0", ClassLayer())]
