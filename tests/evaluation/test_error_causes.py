"""The cause of every error by hand, and what causes cost: random images add up to the loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.evaluation.error_causes import CAUSES, MATCHED
from panoptic_ext.evaluation.outcomes import Outcomes
from panoptic_ext.evaluation.panoptic_quality import PQStat
from panoptic_ext.evaluation.report import named_result
from panoptic_ext.evaluation.segment_list import segment_rows
from panoptic_ext.evaluation.tables import cost_table
from tests.evaluation.matches import (
    CAR,
    PERSON,
    ROAD,
    SKY,
    match,
    measures,
    random_samples,
    row,
)
from tests.evaluation.reference import segment


def compare(gt_ids, gt, pred_ids, pred) -> PQStat:
    return PQStat.of(Outcomes.of(match(gt_ids, gt, pred_ids, pred)))


def test_split_merged_and_poor_masks():
    gt = [segment(5, CAR), segment(6, PERSON), segment(7, PERSON), segment(8, CAR), segment(9, SKY)]
    gt_ids = row((5, 10), (6, 4), (7, 4), (8, 10), (9, 10))
    pred = [segment(i, c) for i, c in ((1, CAR), (2, CAR), (3, PERSON), (4, CAR), (5, SKY))]
    # car 5 in two halves, both persons in one, a third of car 8, the sky well
    pred_ids = row((1, 5), (2, 5), (3, 8), (4, 3), (0, 7), (5, 10))
    stat = compare(gt_ids, gt, pred_ids, pred)
    assert dict(stat[CAR].fn_causes) == {"split": 1, "poor mask": 1}
    assert dict(stat[CAR].fp_causes) == {"split": 2, "poor mask": 1}
    assert dict(stat[PERSON].fn_causes) == {"merged": 2}
    assert dict(stat[PERSON].fp_causes) == {"merged": 1}


def test_missed_wrong_class_and_spurious():
    lonely = compare(
        row((5, 4), (9, 4)),
        [segment(5, CAR), segment(9, SKY)],
        row((0, 4), (1, 4)),
        [segment(1, CAR)],
    )
    assert dict(lonely[CAR].fn_causes) == {"missed": 1}
    assert dict(lonely[CAR].fp_causes) == dict(lonely[SKY].fn_causes) == {"wrong class": 1}
    invented = compare(
        row((9, 8)), [segment(9, SKY)], row((1, 4), (2, 4)), [segment(1, CAR), segment(2, SKY)]
    )
    assert dict(invented[CAR].fp_causes) == {"spurious": 1}
    assert dict(invented[SKY].fn_causes) == {"poor mask": 1}


def test_a_second_truth_in_a_match_that_is_mostly_void():
    gt = [segment(5, CAR), segment(6, CAR)]
    stat = compare(row((0, 12), (5, 6), (6, 2)), gt, row((1, 20)), [segment(1, CAR)])
    assert stat[CAR].tp == 1 and dict(stat[CAR].fn_causes) == {"merged": 1}


def test_duplicate():
    """A second prediction in a car that another one matches; its truth is not split."""
    stat = compare(
        row((5, 10)), [segment(5, CAR)], row((1, 7), (2, 3)), [segment(1, CAR), segment(2, CAR)]
    )
    assert stat[CAR].tp == 1 and not stat[CAR].fn
    assert dict(stat[CAR].fp_causes) == {"duplicate": 1}


def test_a_truth_in_a_prediction_that_does_not_count():
    """The car lies in a prediction of cars of which more than half is crowd."""
    gt = [segment(5, CAR), segment(6, CAR, crowd=1)]
    stat = compare(row((5, 4), (6, 6)), gt, row((1, 10)), [segment(1, CAR)])
    assert dict(stat[CAR].fn_causes) == {"void or crowd": 1} and not stat[CAR].fp
    # without the crowd the same mask is a poor one
    gt = [segment(5, CAR), segment(6, SKY), segment(7, ROAD)]
    stat = compare(row((5, 4), (6, 3), (7, 3)), gt, row((1, 10)), [segment(1, CAR)])
    assert dict(stat[CAR].fn_causes) == dict(stat[CAR].fp_causes) == {"poor mask": 1}


@pytest.mark.parametrize(
    ("void", "sky", "cause"), [(4, 3, "void or crowd"), (4, 4, "spurious"), (3, 4, "spurious")]
)
def test_a_prediction_mostly_without_truth(void: int, sky: int, cause: str):
    gt = [segment(5, SKY), segment(6, ROAD)]
    gt_ids = row((0, void), (5, sky), (6, 10 - void - sky), (5, 30))
    stat = compare(gt_ids, gt, row((1, 10), (0, 30)), [segment(1, CAR)])
    assert dict(stat[CAR].fp_causes) == {cause: 1}


def test_a_crowd_that_does_not_count_is_no_other_class():
    """Of two crowds of cars only the last counts; a car on the first one is a false positive."""
    gt = [segment(5, CAR, crowd=1), segment(6, CAR, crowd=1)]
    stat = compare(row((5, 8), (6, 2)), gt, row((1, 8), (0, 2)), [segment(1, CAR)])
    assert dict(stat[CAR].fp_causes) == {"void or crowd": 1}


def test_costs_by_hand():
    # Persons: IoU 0.8, one missed, one spurious: W = 2. The sky is found well.
    sample = (
        row((5, 10), (6, 10), (9, 20)),
        [segment(5, PERSON), segment(6, PERSON), segment(9, SKY)],
        row((1, 8), (0, 12), (3, 19), (2, 1)),
        [segment(1, PERSON), segment(2, PERSON), segment(3, SKY)],
    )
    found = measures([sample])
    person = found.costs["per_class"][PERSON]
    assert {c: v for c, v in person.items() if v} == pytest.approx(
        {MATCHED: 10, "missed": 25, "spurious": 25}
    )
    assert found.costs["All"]["missed"] == pytest.approx(12.5)  # of two classes
    assert found.costs["All"][MATCHED] == pytest.approx(7.5)  # (10 + 5) / 2
    assert found.costs["Stuff"]["missed"] == 0 and found.costs["per_class"][CAR] == {}
    lines = cost_table(found).splitlines()
    assert lines[0].split("|")[1:-1] == [
        text for text in lines[0].split("|") if text.strip()
    ]  # no empty heading
    assert [cell.strip() for cell in lines[-2].split("|")[1:-1]] == [
        *("person", "40.00", "10.00", "25.00", "25.00")
    ]
    result = named_result(found)
    assert result["costs"]["Things"]["missed"] == pytest.approx(25)
    assert result["per_class"][1]["costs"] == {}  # no car anywhere


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_costs_add_up_to_the_loss(seed: int):
    found = measures(random_samples(seed, number=4))
    rows = [(found.summary[g], found.costs[g]) for g in ("All", "Things", "Stuff")]
    rows += [(found.summary["per_class"][c], found.costs["per_class"][c]) for c in found.categories]
    for quality, costs in rows:
        if math.isnan(quality["pq"]):
            assert costs == {}
        else:
            assert list(costs) == list(CAUSES)
            assert math.fsum(costs.values()) + 100 * quality["pq"] == pytest.approx(100, abs=1e-10)
            assert min(costs.values()) >= 0
    names = dict.fromkeys(found.images, "")
    costs = math.fsum(row["cost"] for row in segment_rows(found, names))
    pq = found.summary["All"]["pq"]
    assert costs == pytest.approx(0 if math.isnan(pq) else 100 - 100 * pq, abs=1e-10)
    matched_quality = found.costs["per_class"]
    for category, counts in found.total.counts.items():
        if counts.tp:
            share = np.sum(1 - np.array(counts.ious)) / counts.weight
            assert matched_quality[category][MATCHED] == pytest.approx(100 * share)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_every_error_has_one_cause(seed: int):
    for sample in random_samples(seed, number=3):
        stat = compare(*sample)
        for counts in stat.counts.values():
            assert counts.fn_causes.total() == counts.fn
            assert counts.fp_causes.total() == counts.fp
            assert MATCHED not in counts.fn_causes | counts.fp_causes
            assert not counts.fp_causes["missed"] and not counts.fn_causes["spurious"]
            assert not counts.fn_causes["duplicate"]
