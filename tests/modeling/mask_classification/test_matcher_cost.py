"""The cost of HungarianMatcher and the losses of SetCriterion as a whole, at given points.

Shapes: Q queries, N targets, P points. Values at points become maps one pixel high and `WIDTH`
wide, which are sampled at the centres of their first P pixels: exactly, as `WIDTH` is a power of 2.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.modeling.mask_classification import criterion as criterion_module
from panoptic_ext.modeling.mask_classification import matcher as matcher_module
from panoptic_ext.modeling.mask_classification.criterion import SetCriterion
from panoptic_ext.modeling.mask_classification.matcher import HungarianMatcher
from panoptic_ext.modeling.mask_classification.targets import PlaneTargets
from panoptic_ext.modeling.transformer_decoder.outputs import DecoderOutputs, QueryMasks
from tests.mask2former_reference import reference_arrays, reference_json
from tests.modeling.mask_classification import naive_mask_losses as naive

WIDTH = 512
UNEQUAL = {"class_weight": 3.0, "mask_weight": 0.5, "dice_weight": 7.0}


class ValuesAtPoints(PlaneTargets):
    """Targets that are defined at the points alone, with any value from 0 to 1."""

    def __init__(self, labels, values):
        super().__init__(labels, values[:, None] > 0.5, "points")
        self.values = values

    def sample(self, points):
        return self.values.repeat(1, len(points) // self.values.shape[1])

    def sample_each(self, rows, points):
        assert points.shape[:2] == (len(rows), self.values.shape[1])
        return self.values[rows]


def centres(count):
    """Points (P, 2) at the pixel centres."""
    return torch.stack(((torch.arange(count) + 0.5) / WIDTH, torch.full((count,), 0.5)), dim=1)


def outputs_of(class_logits, mask_points, lazy, signs=(1,)):
    """Outputs of a decoder with these mask logits (Q, P) at the points, one for each sign.

    Lazy ones share their mask features, as those of a decoder do.
    """
    queries, points = mask_points.shape
    maps = torch.nn.functional.pad(mask_points, (0, WIDTH - points))[None, :, None]
    embed = torch.eye(queries)[None]
    return [
        DecoderOutputs(
            sign * class_logits[None], QueryMasks(sign * embed, maps) if lazy else sign * maps
        )
        for sign in signs
    ]


def shared_centres(_, count, __, draws=1):
    return centres(count).expand(draws, -1, -1)


@pytest.fixture
def fixed_points(monkeypatch):
    """Matcher and criterion compare masks at the pixel centres instead of random points."""
    monkeypatch.setattr(matcher_module, "common_points", shared_centres)
    monkeypatch.setattr(
        criterion_module,
        "uncertain_points",
        lambda masks, count, **_: centres(count).expand(len(masks), -1, -1),
    )


@pytest.mark.parametrize("lazy", [False, True])
def test_costs_equal_the_naive_ones_under_unequal_weights(fixed_points, lazy):
    @settings(max_examples=20, deadline=None)
    @given(st.integers(1, 5), st.integers(0, 4), st.integers(1, 9), st.integers(0, 99))
    def check(queries, count, points, seed):
        generator = torch.Generator().manual_seed(seed)
        arrays = (
            torch.randn(queries, 5, generator=generator) * 3,
            torch.randint(0, 4, (count,), generator=generator),
            torch.randn(queries, points, generator=generator) * 3,
            torch.rand(count, points, generator=generator),
        )
        class_logits, labels, masks, values = arrays
        matcher = HungarianMatcher(num_points=points, **UNEQUAL)
        target = ValuesAtPoints(labels, values)
        (found,) = matcher._costs(outputs_of(class_logits, masks, lazy, (1, -1)), [target])
        weights = tuple(UNEQUAL.values())
        for sign, cost in zip((1, -1), found, strict=True):
            signed = (sign * class_logits, labels, sign * masks, values)
            expected = naive.cost_matrix(*(array.numpy() for array in signed), weights)
            np.testing.assert_allclose(cost, expected, rtol=2e-5, atol=2e-5)

    check()


@pytest.mark.parametrize("lazy", [False, True])
def test_reference_cases_through_matcher_and_criterion(fixed_points, lazy):
    """With the default weights, which are the published 2, 5, 5."""
    arrays = reference_arrays("matching_and_losses")
    for case in reference_json("matching_and_losses"):
        number, points = case["case"], case["points"]
        names = ("class_logits", "labels", "mask_points", "target_points")
        class_logits, labels, masks, values = (arrays[f"{number}_{name}"] for name in names)
        target, (output,) = ValuesAtPoints(labels, values), outputs_of(class_logits, masks, lazy)
        matcher = HungarianMatcher(num_points=points)
        ((cost,),) = matcher._costs([output], [target])
        torch.testing.assert_close(cost, arrays[f"{number}_cost"], rtol=1e-5, atol=1e-5)
        (((queries, rows),),) = matcher([output], [target])
        assert queries.tolist() == arrays[f"{number}_rows"].tolist()
        assert rows.tolist() == arrays[f"{number}_cols"].tolist()

        assert case["num_masks"] == len(target)
        criterion = SetCriterion(case["classes"], matcher, {}, 0.1, points, 3.0, 0.75)
        losses = {name: loss.item() for name, loss in criterion(output, [target]).items()}
        short = {"loss_ce": "class", "loss_mask": "mask", "loss_dice": "dice"}
        expected = {name: case[f"{term}_loss"] for name, term in short.items()}
        assert losses == pytest.approx(expected, rel=1e-5, abs=1e-5)
