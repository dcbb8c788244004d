"""PQ by size and confusion matrices: limits by hand, random images against loops over pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.evaluation.confusion import most_confused
from panoptic_ext.evaluation.outcomes import FN
from panoptic_ext.evaluation.report import named_result
from panoptic_ext.evaluation.sizes import SIZES, sizes_of
from panoptic_ext.evaluation.tables import result_text
from tests.evaluation.matches import (
    CAR,
    PERSON,
    ROAD,
    SKY,
    Sample,
    measures,
    random_samples,
    row,
)
from tests.evaluation.reference import CATEGORIES, IS_THING, segment, summarize

CLASSES = [c["id"] for c in CATEGORIES]


@pytest.mark.parametrize(
    ("kind", "areas", "num_pixels"),
    [
        ("pixels", [1023, 1024, 9215, 9216], 10**6),
        ("share", [999, 1000, 8999, 9000], 300000),
        ("share", [1023, 1024, 9215, 9216], 480 * 640),
    ],
)
def test_limits(kind: str, areas: list[int], num_pixels: int):
    found = sizes_of(np.array(areas), np.full(4, num_pixels), kind)
    assert [SIZES[i] for i in found] == ["small", "medium", "medium", "large"]


def test_a_false_positive_has_its_own_size():
    # A person of 1000 pixels, small, is lost in a mask of 2000, medium; the sky of 9000 is found.
    found = measures(
        [
            (
                row((5, 1000), (9, 10000)),
                [segment(5, PERSON), segment(9, SKY)],
                row((1, 2000), (2, 9000)),
                [segment(1, PERSON), segment(2, SKY)],
            )
        ]
    )
    sizes = found.by_size["pixels"]
    assert {n: (s["tp"], s["fp"], s["fn"]) for n, s in sizes.items()} == {
        "small": (0, 0, 1),
        "medium": (0, 1, 0),
        "large": (1, 0, 0),
    }
    assert sizes["large"]["All"]["pq"] == pytest.approx(0.9)
    assert sizes["small"]["Things"]["pq"] == 0 and math.isnan(sizes["small"]["Stuff"]["pq"])
    assert "| small (pixels) " in result_text(found)
    assert named_result(found)["by_size"]["pixels"]["small"]["PQ_st"] is None


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_sizes_against_a_loop(seed: int):
    samples = random_samples(seed, number=3, size=70)
    found = measures(samples)
    outcomes, images = found.segments
    for size in range(3):
        counts: dict[int, list] = {c: [0.0, 0, 0, 0] for c in IS_THING}
        for n in range(len(outcomes)):
            area, pixels = int(outcomes.areas[n]), samples[images[n]][0].size
            if (area / pixels >= 1 / 300) + (area / pixels >= 3 / 100) == size:
                counts[int(outcomes.categories[n])][0] += float(outcomes.ious[n])
                # TP, FN, FP, but `summarize` takes TP, FP, FN
                counts[int(outcomes.categories[n])][(1, 3, 2)[outcomes.kinds[n]]] += 1
        for group, values in summarize(counts).items():
            for key, value in values.items():
                got = found.by_size["share"][SIZES[size]][group][key]
                assert got == pytest.approx(value, rel=1e-12, nan_ok=True)


def naive_confusions(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Of segments and of pixels, with masks and loops over all pairs."""
    gt_ids, gt, pred_ids, pred = sample
    segments, pixels = np.zeros((5, 5), int), np.zeros((5, 5), int)
    at = {c: i for i, c in enumerate(CLASSES)}
    used = set()
    for g in [g for g in gt if not g["iscrowd"]]:
        column = 4
        for p in pred:
            in_g, in_p = gt_ids == g["id"], pred_ids == p["id"]
            union = int((in_g | in_p).sum()) - int((in_p & (gt_ids == 0)).sum())
            if union and int((in_g & in_p).sum()) / union > 0.5:
                column = at[p["category_id"]]
                used.add(p["id"])
        segments[at[g["category_id"]], column] += 1
    for p in [p for p in pred if p["id"] not in used]:
        in_p = pred_ids == p["id"]
        crowds = [g for g in gt if g["iscrowd"] and g["category_id"] == p["category_id"]]
        ignored = in_p & np.isin(gt_ids, [0] + [g["id"] for g in crowds[-1:]])
        if ignored.sum() <= in_p.sum() / 2:
            segments[4, at[p["category_id"]]] += 1
    of_gt = {g["id"]: at[g["category_id"]] for g in gt}
    of_pred = {p["id"]: at[p["category_id"]] for p in pred}
    for g, p in zip(gt_ids.reshape(-1).tolist(), pred_ids.reshape(-1).tolist(), strict=True):
        pixels[of_gt.get(g, 4), of_pred.get(p, 4)] += 1
    return segments, pixels


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_confusion_against_loops(seed: int):
    samples = random_samples(seed, number=3)
    found = measures(samples)
    segments, pixels = (sum(parts) for parts in zip(*map(naive_confusions, samples), strict=True))
    np.testing.assert_array_equal(found.segment_confusion, segments)
    np.testing.assert_array_equal(found.pixel_confusion, pixels)
    for i, category in enumerate(CLASSES):
        of_class = found.segments[0].categories == category
        missed = (found.segments[0].kinds == FN) & of_class
        counts = found.summary["per_class"][category]
        assert found.segment_confusion[i].sum() == counts["tp"] + counts["fn"]
        assert missed.sum() == counts["fn"]


def test_the_most_confused_are_named():
    matrix = np.array([[9, 1, 0, 7], [5, 9, 2, 0], [0, 0, 9, 0], [3, 0, 0, 0]])
    names = ["a", "b", "c"]
    assert most_confused(matrix, names, 2) == [("b", "a", 5), ("b", "c", 2)]
    assert most_confused(matrix, names, 9) == [("b", "a", 5), ("b", "c", 2), ("a", "b", 1)]
    sample = (row((5, 4)), [segment(5, CAR)], row((1, 4)), [segment(1, ROAD)])
    found = measures([sample])
    assert "segments (% of the true class): car as road 1 (100.0 %)" in result_text(found)
    confusion = named_result(found)["confusion"]
    assert confusion["segments"] == [[1, 3, 1]] and confusion["pixels"] == [[1, 3, 4]]
