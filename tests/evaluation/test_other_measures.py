"""PQ-dagger, boundary PQ, mIoU and AP of maps: by hand, and random images against slow programs."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage

from panoptic_ext.data.coco.runs import runs_from_ids
from panoptic_ext.evaluation import PanopticEvaluator, evaluate_files
from panoptic_ext.evaluation.boundary import boundary_iou, boundary_match, boundary_pixels
from panoptic_ext.evaluation.image_measures import ImageMeasures
from panoptic_ext.evaluation.measures import Measures
from panoptic_ext.evaluation.other_measures import ap_without_scores
from panoptic_ext.evaluation.panoptic_quality import ClassCounts
from panoptic_ext.evaluation.report import named_result
from panoptic_ext.evaluation.tables import result_text
from tests.evaluation.matches import (
    CAR,
    PERSON,
    ROAD,
    SKY,
    Sample,
    match,
    measures,
    random_samples,
    row,
)
from tests.evaluation.reference import CATEGORIES, IS_THING, segment, summarize, write_dataset
from tests.tiny import predictions as toy


def test_dagger_by_hand():
    # Sky: IoU 0.4, no match, then 0.8; road: predicted in the second image alone, nowhere true.
    gt = [segment(9, SKY), segment(5, CAR)]
    pred = [segment(1, SKY), segment(2, CAR)]
    first = (row((9, 10), (5, 10)), gt, row((1, 4), (0, 6), (2, 10)), pred)
    second = (
        row((9, 10), (5, 10)),
        gt,
        row((1, 8), (3, 2), (2, 10)),
        [*pred, segment(3, ROAD)],
    )
    found = measures([first, second])
    assert found.dagger["per_class"][SKY] == pytest.approx(60)
    assert found.summary["per_class"][SKY]["pq"] == pytest.approx(0.4)  # 0.8 / (1 + 0.5 + 0.5)
    assert math.isnan(found.dagger["per_class"][ROAD])
    assert found.dagger["PQ_dagger_st"] == pytest.approx(60)
    assert found.dagger["PQ_dagger"] == pytest.approx((60 + 100) / 2)
    assert found.summary["All"]["pq"] == pytest.approx((0.4 + 0 + 1) / 3)


def naive_dagger(samples: list[Sample]) -> dict[int, float]:
    """Of stuff, in [0, 1], with masks."""
    found = {}
    for category in (SKY, ROAD):
        ious = []
        for gt_ids, gt, pred_ids, pred in samples:
            of_class = [s for s in gt if s["category_id"] == category]
            in_g = np.isin(gt_ids, [s["id"] for s in of_class if not s["iscrowd"]])
            ignored = np.isin(gt_ids, [0, *(s["id"] for s in of_class if s["iscrowd"])])
            in_p = np.isin(pred_ids, [s["id"] for s in pred if s["category_id"] == category])
            if in_g.any():
                ious.append((in_g & in_p).sum() / (in_g | (in_p & ~ignored)).sum())
        found[category] = float(np.mean(ious)) if ious else math.nan
    return found


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_dagger_against_masks(seed: int):
    samples = random_samples(seed, number=3)
    found = measures(samples)
    for category, value in naive_dagger(samples).items():
        got = found.dagger["per_class"][category]
        assert got == pytest.approx(100 * value, rel=1e-12, nan_ok=True)


def test_dagger_against_torchmetrics():
    """Without void and crowds, where the rules are the same."""
    detection = pytest.importorskip("torchmetrics.detection")
    rng = np.random.default_rng(0)
    things, stuffs = {c for c, thing in IS_THING.items() if thing}, {SKY, ROAD}
    metric = detection.ModifiedPanopticQuality(things=things, stuffs=stuffs)
    samples = []
    for _ in range(20):
        maps, tables = [], []
        ids = np.kron(rng.integers(1, 9, (3, 3)), np.ones((8, 8), np.int64)).astype(np.int64)
        for noise in (0.0, 0.3):
            ids = np.where(rng.random(ids.shape) < noise, rng.integers(1, 9, ids.shape), ids)
            # two segments of each thing class, one of each stuff class
            classes = [0, PERSON, PERSON, CAR, CAR, SKY, SKY, ROAD, ROAD]
            ids = np.where(ids == 6, 5, np.where(ids == 8, 7, ids))
            tables.append([segment(int(i), classes[i]) for i in np.unique(ids)])
            maps.append(np.stack([np.array(classes)[ids], ids], axis=-1))
        samples.append((maps[0][..., 1], tables[0], maps[1][..., 1], tables[1]))
        metric.update(torch.from_numpy(maps[1])[None], torch.from_numpy(maps[0])[None])
    found = measures(samples)
    # It computes IoUs in float32.
    assert found.dagger["PQ_dagger"] == pytest.approx(100 * float(metric.compute()), rel=1e-6)


def naive_boundary(mask: np.ndarray) -> np.ndarray:
    distance = max(1, round(0.02 * math.hypot(*mask.shape)))
    inner = ndimage.binary_erosion(np.pad(mask, 1), np.ones((3, 3)), iterations=distance)
    return mask & ~inner[1:-1, 1:-1]


def naive_boundary_counts(sample: Sample) -> dict[int, list]:
    """{category: [IoU sum, TP, FP, FN]} with a mask for each segment."""
    gt_ids, gt, pred_ids, pred = sample
    counts: dict[int, list] = {c: [0.0, 0, 0, 0] for c in IS_THING}
    void, matched = gt_ids == 0, set()
    for g in [g for g in gt if not g["iscrowd"]]:
        hit = False
        for p in [p for p in pred if p["category_id"] == g["category_id"]]:
            ious = []
            for outline in (lambda mask: mask, naive_boundary):
                in_g, in_p = outline(gt_ids == g["id"]), outline(pred_ids == p["id"])
                ious.append((in_g & in_p).sum() / (in_g | (in_p & ~void)).sum())
            if min(ious) > 0.5:
                hit = True
                matched.add(p["id"])
                counts[g["category_id"]][0] += min(ious)
        counts[g["category_id"]][1 if hit else 3] += 1
    for p in [p for p in pred if p["id"] not in matched]:
        crowds = [g["id"] for g in gt if g["iscrowd"] and g["category_id"] == p["category_id"]]
        in_p = pred_ids == p["id"]
        if (in_p & np.isin(gt_ids, [0, *crowds[-1:]])).sum() <= in_p.sum() / 2:
            counts[p["category_id"]][2] += 1
    return counts


def with_boundary(samples: list[Sample]) -> Measures:
    images = {}
    for i, sample in enumerate(samples):
        found = match(*sample)
        outlines = boundary_match(found, runs_from_ids(sample[0]), runs_from_ids(sample[2]))
        images[i] = ImageMeasures.of(found, outlines)
    return Measures(images, {c["id"]: c for c in CATEGORIES})


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_boundary_pq_against_masks(seed: int):
    samples = random_samples(seed, number=3, size=90)
    found = with_boundary(samples).boundary
    parts = [naive_boundary_counts(sample) for sample in samples]
    counts = {c: [sum(part[c][k] for part in parts) for k in range(4)] for c in IS_THING}
    for group, values in summarize(counts).items():
        for key, value in values.items():
            assert found[group][key] == pytest.approx(value, rel=1e-12, nan_ok=True)


SIDES, RATIOS = st.integers(1, 60), st.sampled_from([0.02, 0.05, 0.2])


@given(SIDES, SIDES, RATIOS, st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_boundaries_against_erosion(height: int, width: int, ratio: float, seed: int):
    small = np.random.default_rng(seed).integers(0, 4, (height // 9 + 1, width // 9 + 1))
    ids = np.kron(small, np.ones((9, 9), np.int64)).astype(np.int64)[:height, :width]
    distance = max(1, round(ratio * math.hypot(height, width)))
    expected = np.zeros(ids.shape, bool)
    for i in np.unique(ids):
        mask = np.pad(ids == i, 1)
        inner = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=distance)
        expected |= (ids == i) & ~inner[1:-1, 1:-1]
    np.testing.assert_array_equal(boundary_pixels(runs_from_ids(ids), ratio), expected)


def test_boundary_iou_of_many_segments():
    """Numbers of pairs go past 32 bits."""
    ids = np.arange(1, 401).reshape(20, 20).repeat(10, 0).repeat(10, 1)
    segments = [segment(i, CAR) for i in range(1, 401)]
    found = match(ids, segments, ids, segments)
    runs = runs_from_ids(ids)
    assert (boundary_iou(found, runs, runs) == 1).all()


def test_void_is_left_out_of_outlines_inside_it_too():
    """A car of 100 x 50 before void, predicted 30 pixels too wide; outlines are 3 pixels."""
    gt_ids, pred_ids = (np.repeat([[5] * w + [0] * (100 - w)], 100, 0) for w in (50, 80))
    found = match(gt_ids, [segment(5, CAR)], pred_ids, [segment(5, CAR)])
    iou = boundary_iou(found, runs_from_ids(gt_ids), runs_from_ids(pred_ids))
    outline = 100 * 50 - 94 * 44
    assert found.iou.tolist() == [1] and iou.tolist() == [(outline - 3 * 94) / outline]


def test_a_large_segment_s_outline_counts():
    """A shift of two pixels hardly changes the mask of a square of 80, and halves its outline."""
    gt_ids = np.zeros((100, 100), np.int64)
    gt_ids[:] = 9
    gt_ids[10:90, 10:90] = 5
    pred_ids = np.roll(gt_ids, 2, axis=(0, 1))
    segments = [segment(5, CAR), segment(9, SKY)]
    found = with_boundary([(gt_ids, segments, pred_ids, segments)])
    assert found.summary["per_class"][CAR]["pq"] > 0.9
    assert found.boundary["per_class"][CAR]["pq"] == 0  # boundaries are 3 pixels wide
    result = named_result(found)
    assert result["other_measures"]["boundary_PQ_th"] == 0
    assert result["per_class"][1]["boundary_PQ"] == 0
    assert "boundary PQ_th 0.000" in result_text(found)


def test_boundary_pq_is_asked_for(name, tmp_path):
    evaluator = PanopticEvaluator(name, boundary=True)
    toy.run(evaluator, name, toy.imperfect())
    assert evaluator.measures.boundary["All"]["pq"] < evaluator.summary["All"]["pq"]
    plain = PanopticEvaluator(name)
    toy.run(plain, name, toy.imperfect())
    assert plain.measures.boundary is None
    assert "boundary_PQ" not in named_result(plain.measures)["other_measures"]
    images = [(i, n, *toy.truth(i)) for i, n in toy.NAMES.items()]
    files = write_dataset(tmp_path, "gt", images)
    found = evaluate_files(*files, *files, num_threads=0, boundary=True)
    assert found.measures.boundary["All"]["pq"] == 1


def test_void_of_a_map_is_missed_in_miou():
    found = measures([(row((9, 10)), [segment(9, SKY)], row((1, 4), (0, 6)), [segment(1, SKY)])])
    assert found.semantic["mIoU"] == pytest.approx(40)
    assert named_result(found)["per_class"][2]["IoU"] == pytest.approx(40)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_miou_against_masks(seed: int):
    samples = random_samples(seed, number=3)
    ious = []
    for category in IS_THING:
        hits = union = 0
        for gt_ids, gt, pred_ids, pred in samples:
            listed = np.isin(gt_ids, [s["id"] for s in gt])
            in_g = np.isin(gt_ids, [s["id"] for s in gt if s["category_id"] == category])
            in_p = np.isin(pred_ids, [s["id"] for s in pred if s["category_id"] == category])
            hits += (in_g & in_p).sum()
            union += ((in_g | in_p) & listed).sum()
        if union:
            ious.append(hits / union)
    expected = 100 * np.mean(ious) if ious else math.nan
    got = measures(samples).semantic["mIoU"]
    assert got == pytest.approx(expected, rel=1e-12, nan_ok=True)


def coco_ap(counts: ClassCounts) -> np.ndarray:
    """(10,) AP of COCOeval over boxes of the same IoUs, false positives with the better scores."""
    # One object an image: a box of width 1000 IoU inside one of 1000 has this IoU.
    truth, found = [], []
    for n in range(counts.tp + counts.fn):
        truth.append({"id": n + 1, "image_id": n, "category_id": 1, "bbox": [0, 0, 1000, 1]})
    for n, iou in enumerate(counts.ious):
        found.append({"image_id": n, "category_id": 1, "bbox": [0, 0, 1000 * iou, 1], "score": 0.1})
    for n in range(counts.fp):
        box = {"image_id": n, "category_id": 1, "bbox": [5000, 0, 9, 1], "score": 0.9}
        found.append(box)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        number = max(len(truth), counts.fp)
        coco.dataset = {
            "info": {},
            "images": [{"id": n} for n in range(number)],
            "categories": [{"id": 1}],
            "annotations": [{**a, "area": 1000, "iscrowd": 0, "ignore": 0} for a in truth],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, 0, 0, -1].mean(axis=1)


def test_ap_against_cocoeval():
    rng = np.random.default_rng(0)
    for tp, fp, fn in ((7, 2, 3), (1, 0, 0), (10, 5, 0), (3, 9, 30)):
        counts = ClassCounts((0.501 + 0.498 * rng.random(tp)).round(3).tolist(), fp, fn)
        # a hit below a threshold has a better score than those above it, or the same
        got = ap_without_scores(counts)
        order = np.sort(counts.ious)
        worst = []
        for number, threshold in enumerate(np.linspace(0.5, 0.95, 10)):
            hits = [iou for iou in order if iou >= threshold]
            below = tp - len(hits)
            alone = ClassCounts(hits, fp + below, fn + below)
            worst.append(coco_ap(alone)[number] if hits else 0.0)
        np.testing.assert_allclose(got, worst, rtol=1e-9)


def test_ap_by_hand():
    assert np.isnan(ap_without_scores(ClassCounts([], fp=3))).all()
    assert (ap_without_scores(ClassCounts([1.0, 1.0])) == 1).all()
    half = ap_without_scores(ClassCounts([0.74], fp=1, fn=1))
    assert half[:5] == pytest.approx([0.5 * 51 / 101] * 5) and not half[5:].any()
    gt = [segment(5, CAR), segment(9, SKY)]
    found = measures([(row((5, 10), (9, 5)), gt, row((1, 8), (0, 7)), [segment(1, CAR)])])
    assert found.precision["AP50"] == 100 and found.precision["AP"] == pytest.approx(70)
    assert list(found.precision["per_class"]) == [PERSON, CAR]
    assert "AP without scores 70.000" in result_text(found)
