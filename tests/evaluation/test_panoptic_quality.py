"""Panoptic quality: every rule by hand, and random data sets against two other programs."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.data.coco.runs import runs_from_ids
from panoptic_ext.data.coco.segment_table import SegmentTable
from panoptic_ext.errors import EvaluationError
from panoptic_ext.evaluation.compare_files import evaluate_files
from panoptic_ext.evaluation.image_match import check_areas
from panoptic_ext.evaluation.outcomes import Outcomes
from panoptic_ext.evaluation.panoptic_quality import PQStat
from tests.evaluation.matches import CAR, PERSON, ROAD, SKY, match, row
from tests.evaluation.reference import (
    CATEGORIES,
    IS_THING,
    count_image,
    random_dataset,
    segment,
    summarize,
)


def compare(gt_ids, gt, pred_ids, pred, *, areas: bool = True) -> PQStat:
    """Counts of one image; the truth's areas are counted unless given."""
    return PQStat.of(Outcomes.of(match(gt_ids, gt, pred_ids, pred, areas=areas)))


def counts(stat: PQStat, category: int) -> tuple[float, int, int, int]:
    c = stat[category]
    return math.fsum(c.ious), c.tp, c.fp, c.fn


def test_match_and_iou():
    stat = compare(
        row((5, 6), (9, 4)),
        [segment(5, PERSON), segment(9, SKY)],
        row((1, 7), (2, 3)),
        [segment(1, PERSON), segment(2, SKY)],
    )
    assert counts(stat, PERSON) == (6 / 7, 1, 0, 0)
    assert counts(stat, SKY) == (3 / 4, 1, 0, 0)
    all_ = stat.summary(IS_THING)["All"]
    assert all_ == {"pq": (6 / 7 + 3 / 4) / 2, "sq": (6 / 7 + 3 / 4) / 2, "rq": 1.0, "n": 2}


def test_iou_of_exactly_half_is_no_match():
    # union 4 + 2 - 2 = 4, intersection 2
    stat = compare(
        row((5, 2), (6, 2)), [segment(5, CAR), segment(6, SKY)], row((1, 4)), [segment(1, CAR)]
    )
    assert counts(stat, CAR) == (0.0, 0, 1, 1)
    stat = compare(
        row((5, 3), (6, 2)), [segment(5, CAR), segment(6, SKY)], row((1, 5)), [segment(1, CAR)]
    )
    assert counts(stat, CAR) == (3 / 5, 1, 0, 0)


def test_wrong_class_is_one_fp_and_one_fn():
    stat = compare(row((5, 4)), [segment(5, CAR)], row((5, 4)), [segment(5, PERSON)])
    assert counts(stat, CAR) == (0.0, 0, 0, 1)
    assert counts(stat, PERSON) == (0.0, 0, 1, 0)
    assert dict(stat[CAR].fn_causes) == {"wrong class": 1}
    assert dict(stat[PERSON].fp_causes) == {"wrong class": 1}


def test_void_is_left_out_of_the_union():
    # the prediction has 8 pixels, 4 of them on void: union 8 + 4 - 4 - 4
    stat = compare(row((5, 4), (0, 4)), [segment(5, CAR)], row((1, 8)), [segment(1, CAR)])
    assert counts(stat, CAR) == (1.0, 1, 0, 0)


@pytest.mark.parametrize(("void", "fp"), [(4, 1), (5, 0)])
def test_fp_on_void_is_ignored_strictly_above_half(void: int, fp: int):
    stat = compare(row((0, void), (5, 8 - void)), [segment(5, SKY)], row((1, 8)), [segment(1, CAR)])
    assert counts(stat, CAR) == (0.0, 0, fp, 0)


def test_crowd_is_neither_match_nor_fn_and_hides_fps_of_its_category():
    gt = [segment(5, CAR, crowd=1)]
    assert counts(compare(row((5, 8)), gt, row((1, 8)), [segment(1, CAR)]), CAR) == (0, 0, 0, 0)
    other = compare(row((5, 8)), gt, row((1, 8)), [segment(1, PERSON)])
    assert counts(other, PERSON) == (0, 0, 1, 0)
    assert counts(other, CAR) == (0, 0, 0, 0)


@pytest.mark.parametrize(("crowd", "fp"), [(2, 1), (3, 0)])
def test_void_and_crowd_add_up(crowd: int, fp: int):
    gt = [segment(5, CAR, crowd=1), segment(6, SKY)]
    stat = compare(row((0, 2), (5, crowd), (6, 6 - crowd)), gt, row((1, 8)), [segment(1, CAR)])
    assert counts(stat, CAR) == (0, 0, fp, 0)


def test_of_several_crowds_of_a_category_only_the_last_counts():
    ids, pred = row((5, 6), (6, 2)), [segment(1, CAR)]
    first, second = segment(5, CAR, crowd=1), segment(6, CAR, crowd=1)
    assert counts(compare(ids, [first, second], row((1, 8)), pred), CAR) == (0, 0, 1, 0)
    assert counts(compare(ids, [second, first], row((1, 8)), pred), CAR) == (0, 0, 0, 0)


def test_an_id_without_entry_in_the_truth_is_not_void():
    stat = compare(row((5, 4), (77, 6)), [segment(5, CAR)], row((1, 10)), [segment(1, CAR)])
    assert counts(stat, CAR) == (0.0, 0, 1, 1)


def test_an_entry_without_pixels_in_the_truth_is_a_fn():
    gt = [segment(5, CAR), segment(8, CAR, area=3)]
    stat = compare(row((5, 4)), [gt[0], gt[1]], row((1, 4)), [segment(1, CAR)])
    assert counts(stat, CAR) == (1.0, 1, 0, 1)


def test_true_area_is_the_json_s():
    ids = row((5, 4))
    stat = compare(ids, [segment(5, CAR, area=5)], ids, [segment(5, CAR)], areas=False)
    assert counts(stat, CAR) == (4 / 5, 1, 0, 0)


def test_wrong_true_area_is_found():
    ids, gt = row((5, 4), (6, 1)), [segment(5, CAR, area=40), segment(6, CAR, area=1)]
    table = SegmentTable.from_segments_info(gt, IS_THING, "image 1")
    with pytest.raises(EvaluationError, match=r"image 1: .*segment 5 an area of 40.*has 4 pixels"):
        check_areas(runs_from_ids(ids), table, "image 1")
    check_areas(runs_from_ids(ids), table.with_areas(np.array([4, 1])), "image 1")
    # an entry without pixels is a false negative, not a wrong area
    check_areas(runs_from_ids(row((5, 4))), table.with_areas(np.array([4, 1])), "image 1")


def test_absent_classes_and_groups():
    stat = compare(row((5, 4)), [segment(5, SKY)], row((1, 4)), [segment(1, SKY)])
    summary = stat.summary(IS_THING)
    assert summary["All"] == {"pq": 1.0, "sq": 1.0, "rq": 1.0, "n": 1}
    assert summary["Things"]["n"] == 0 and math.isnan(summary["Things"]["pq"])
    assert math.isnan(summary["per_class"][CAR]["pq"])
    empty = compare(row((0, 4)), [], row((0, 4)), [])
    assert math.isnan(empty.summary(IS_THING)["All"]["pq"])


def test_class_with_fp_only_counts_as_zero():
    stat = compare(
        row((5, 4), (6, 4)),
        [segment(5, SKY), segment(6, ROAD)],
        row((1, 4), (2, 4)),
        [segment(1, SKY), segment(2, CAR)],
    )
    assert stat.summary(IS_THING)["Things"] == {"pq": 0.0, "sq": 0.0, "rq": 0.0, "n": 1}


def test_sizes_must_be_equal():
    with pytest.raises(EvaluationError, match=r"image 1: the prediction is 1 x 4, .* 2 x 4"):
        compare(np.full((2, 4), 5), [segment(5, CAR)], row((1, 4)), [segment(1, CAR)])


@pytest.mark.parametrize(
    ("ids", "pred", "message"),
    [
        (row((1, 2), (3, 2)), [segment(1, CAR)], r"segment ids 3 are in the label map but not in"),
        (
            row((1, 4)),
            [segment(1, CAR), segment(9, CAR)],
            r"ids 9 are in segments_info but have no",
        ),
        (row((1, 4)), [segment(1, 66)], r"segment 1: unknown category_id 66; "),
        (row((1, 4)), [segment(1, CAR), segment(1, CAR)], r"segment id 1 occurs twice"),
        (row((0, 2), (1, 2)), [segment(0, CAR), segment(1, CAR)], r"id 0 in segments_info"),
        (row((2**24, 4)), [segment(2**24, CAR)], r"id 16777216; expected 0 \(void\) <= id < 2\^24"),
        (row((-1, 4)), [], r"segment id -1"),
        (np.zeros((1, 4)), [], r"array of float64"),
    ],
)
def test_bad_predictions(ids, pred, message):
    with pytest.raises(EvaluationError, match=message):
        compare(row((5, 4)), [segment(5, CAR)], ids, pred)


def test_merging_in_any_order_gives_the_same_bits():
    rng = random.Random(0)
    stats = []
    for _ in range(200):
        stat = PQStat()
        stat[CAR].ious = [rng.uniform(0.5, 1.0) for _ in range(rng.randrange(5))]
        stats.append(stat)
    results = set()
    for _ in range(5):
        rng.shuffle(stats)
        results.add(PQStat.total(copy.deepcopy(stats)).summary(IS_THING)["All"]["pq"])
    assert len(results) == 1


def cityscapes_counts(data: dict) -> dict[int, list]:
    """Counts by cityscapesscripts, which carries panopticapi's matching."""
    module = pytest.importorskip("cityscapesscripts.evaluation.evalPanopticSemanticLabeling")
    pairs = []
    for (gt_json, _), (pred_json, _) in [(data["gt_files"], data["pred_files"])]:
        gt = json.loads(Path(gt_json).read_text())["annotations"]
        pred = {a["image_id"]: a for a in json.loads(Path(pred_json).read_text())["annotations"]}
        pairs = [(a, pred[a["image_id"]]) for a in gt]
    with contextlib.redirect_stdout(io.StringIO()):
        stat = module.pq_compute_single_core(
            0, pairs, data["gt_files"][1], data["pred_files"][1], {c["id"]: c for c in CATEGORIES}
        )
    return {c: [stat[c].iou, stat[c].tp, stat[c].fp, stat[c].fn] for c in IS_THING}


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_random_data_sets_against_cityscapesscripts_and_a_naive_program(seed: int):
    with tempfile.TemporaryDirectory() as folder:
        data = random_dataset(seed, Path(folder))
        result = evaluate_files(*data["gt_files"], *data["pred_files"], num_threads=0)
        oracle = cityscapes_counts(data)
    naive = {c: [0.0, 0, 0, 0] for c in IS_THING}
    for (_, _, gt_ids, gt), (_, _, pred_ids, pred) in zip(data["gt"], data["pred"], strict=True):
        for category, found in count_image(gt_ids, gt, pred_ids, pred).items():
            naive[category] = [a + b for a, b in zip(naive[category], found, strict=True)]
    for expected in (naive, oracle):
        for category in IS_THING:
            row_ = result.summary["per_class"][category]
            assert [row_["tp"], row_["fp"], row_["fn"]] == expected[category][1:]
            assert row_["iou"] == pytest.approx(expected[category][0], rel=1e-12)
        for group, values in summarize(expected).items():
            for key, value in values.items():
                assert result.summary[group][key] == pytest.approx(value, rel=1e-12, nan_ok=True)
    losses = math.fsum(image["loss"] for image in result.per_image)
    pq = 100 * result.summary["All"]["pq"]
    assert losses == 0 if math.isnan(pq) else losses + pq == pytest.approx(100)
