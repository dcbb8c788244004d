"""Bootstrap intervals and comparisons: against loops, and how often they are right."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.commands import evaluate
from panoptic_ext.errors import EvaluationError
from panoptic_ext.evaluation.bootstrap import ImageSums, draws, intervals
from panoptic_ext.evaluation.comparison import compare_results
from panoptic_ext.evaluation.panoptic_quality import PQStat
from panoptic_ext.evaluation.report import named_result
from panoptic_ext.evaluation.segment_list import segment_csv
from panoptic_ext.evaluation.tables import result_text
from tests.evaluation.matches import CAR, SKY, Sample, measures, random_samples, row
from tests.evaluation.reference import IS_THING, segment, with_areas, write_dataset


def test_draws():
    times = np.concatenate(list(draws(num_images=5, number=7, seed=3)))
    assert times.shape == (7, 5) and (times.sum(axis=1) == 5).all()
    np.testing.assert_array_equal(times, np.concatenate(list(draws(5, 7, 3))))
    assert not np.array_equal(times, np.concatenate(list(draws(5, 7, 4))))


def test_blocks_bound_the_memory(monkeypatch):
    whole = np.concatenate(list(draws(10, 30, seed=0)))
    monkeypatch.setattr("panoptic_ext.evaluation.bootstrap._MAX_CELLS", 100)
    blocks = list(draws(10, 30, seed=0))
    assert [len(block) for block in blocks] == [10, 10, 10]
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_draws_against_merged_counts(seed: int):
    found = measures(random_samples(seed, number=4))
    times = np.concatenate(list(draws(4, 3, seed)))
    stats = list(found.stats.values())
    for b, got in enumerate(found.sums.quality(times)):
        drawn = [stat for n, stat in zip(times[b], stats, strict=True) for _ in range(int(n))]
        summary = PQStat.total(drawn).summary(IS_THING)
        rows = [summary[g] for g in ("All", "Things", "Stuff")]
        rows += [summary["per_class"][c] for c in IS_THING]
        np.testing.assert_allclose(got, [100 * r["pq"] for r in rows], rtol=1e-12)
    whole = found.sums.quality(np.ones((1, 4)))[0, 0]
    np.testing.assert_allclose(whole, 100 * found.summary["All"]["pq"], rtol=1e-12)


def test_intervals_of_columns():
    values = np.stack([np.arange(101.0), np.full(101, np.nan), np.arange(101.0)], axis=1)
    values[50:, 2] = np.nan
    (low, high), nothing, (_, half) = intervals(values, level=0.9)
    assert (low, high) == pytest.approx((5, 95))
    assert math.isnan(nothing[0]) and half < 50


def population(rng: np.random.Generator, number: int, gain: float = 0.0) -> np.ndarray:
    """(number, 2) sums of IoUs of images that each hold two segments of two classes."""
    found = rng.random((number, 2, 2)) < 0.7 + gain
    return (found * rng.uniform(0.6, 1.0, found.shape)).sum(axis=2)


def sums_of(ious: np.ndarray) -> ImageSums:
    return ImageSums(ious, np.full(ious.shape, 2.0), np.array([True, False]))


def test_the_interval_holds_the_pq_of_the_population():
    """In about 95 of 100 data sets of 60 images."""
    rng = np.random.default_rng(0)
    truth = 100 * population(rng, 200_000).mean() / 2
    hits = 0
    for seed in range(150):
        sums = sums_of(population(rng, 60))
        values = np.concatenate([sums.quality(times) for times in draws(60, 300, seed)])
        low, high = intervals(values)[0]
        hits += low <= truth <= high
    assert 0.88 < hits / 150 < 0.99


def interval_of_difference(rng: np.random.Generator, gain: float) -> tuple[float, float]:
    first, second = sums_of(population(rng, 60)), sums_of(population(rng, 60, gain))
    values = [second.quality(times) - first.quality(times) for times in draws(60, 300, seed=1)]
    return intervals(np.concatenate(values))[0]


def test_equal_models_seldom_differ_and_better_ones_do():
    rng = np.random.default_rng(1)
    equal = [interval_of_difference(rng, 0.0) for _ in range(150)]
    better = [interval_of_difference(rng, 0.2) for _ in range(50)]
    assert sum(low > 0 or high < 0 for low, high in equal) / 150 < 0.12
    assert sum(low > 0 for low, _ in better) > 45


def car(width: int) -> Sample:
    """A car of ten pixels of which `width` are predicted; the sky is right."""
    ids = row((1, width), (0, 10 - width), (2, 10))
    gt, pred = [segment(5, CAR), segment(9, SKY)], [segment(1, CAR), segment(2, SKY)]
    return row((5, 10), (9, 10)), gt, ids, pred


def test_a_comparison_by_hand():
    first = measures([car(6)] * 4 + [car(9)])
    second = measures([car(8)] * 4 + [car(9)])
    names = {i: f"{i}.png" for i in first.images}
    found = compare_results(first, second, names)
    pq = found.groups["PQ"]
    assert (pq.first, pq.second) == pytest.approx((83, 91))
    assert pq.value == pytest.approx(8) and 0 <= pq.low <= 8 <= pq.high <= 10
    assert found.groups["PQ_st"].value == found.groups["PQ_st"].high == 0
    assert list(found.per_class) == [CAR, SKY]
    assert [row["image_id"] for row in found.images] == [0, 1, 2, 3, 4]
    assert math.fsum(row["difference"] for row in found.images) == pytest.approx(8)
    assert found.images[0]["pq_first"] == pytest.approx(80)
    assert "B is better than A by 8.00 points of PQ (83.00 and 91.00)" in found.sentence()
    assert pq.is_clear == ("That is more than the noise" in found.sentence())
    back = compare_results(second, first, names)
    assert "B is worse than A by 8.00 points" in back.sentence()
    assert (back.groups["PQ"].low, back.groups["PQ"].high) == pytest.approx((-pq.high, -pq.low))


def test_differences_that_are_noise():
    first = measures([car(6), car(9), car(7)])
    second = measures([car(9), car(6), car(8)])
    names = dict.fromkeys(first.images, "")
    found = compare_results(first, second, names)
    assert not found.groups["PQ"].is_clear
    assert "The interval contains 0: that is not more than the noise" in found.sentence()
    assert found.sentence().endswith(
        "Of fewer than 20 images such intervals are too narrow: be careful."
    )
    same = compare_results(first, first, names)
    assert same.sentence() == "B and A have the same PQ on every draw of the 3 images."


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_differences_of_images_add_up(seed: int):
    samples = random_samples(seed, number=4)
    rng = np.random.default_rng(seed)
    others = []
    for gt_ids, gt, pred_ids, pred in samples:
        kept = [s for s in pred if rng.random() < 0.7]
        ids = np.where(np.isin(pred_ids, [s["id"] for s in kept]), pred_ids, 0)
        others.append((gt_ids, gt, ids, kept))
    first, second = measures(samples), measures(others)
    found = compare_results(first, second, dict.fromkeys(first.images, ""), num_draws=20)
    difference = found.groups["PQ"].value
    if not math.isnan(difference):
        total = math.fsum(row["difference"] for row in found.images)
        assert total == pytest.approx(difference, abs=1e-9)


def test_results_of_other_images_are_refused():
    first = measures([car(6), car(7)])
    with pytest.raises(EvaluationError, match=r"different images or categories \(2 and 1 images\)"):
        compare_results(first, first.subset([0]), {})


def test_intervals_of_a_result():
    found = measures([car(6)] * 3 + [car(9)])
    low, high = found.intervals["PQ"]
    assert 80 <= low <= 100 * found.summary["All"]["pq"] <= high <= 95
    assert found.intervals["PQ_st"] == (100, 100)
    text = result_text(found)
    assert f"95 % intervals over draws of the 4 images: PQ {low:.2f} to {high:.2f}" in text
    result = named_result(found)
    assert result["intervals"]["PQ"] == [low, high]
    assert result["per_class"][0]["interval"] == [None, None]  # no person
    alone = measures([car(6)])
    assert "intervals" not in result_text(alone)
    assert named_result(alone)["intervals"]["PQ"] == [None, None]


def test_nothing_to_measure():
    """All is void, and nothing is predicted: every measure is not available, and none crashes."""
    void = np.zeros((4, 6), np.int64)
    found = measures([(void, [], void, [])] * 3)
    assert math.isnan(found.summary["All"]["pq"]) and found.costs["All"] == {}
    assert "n/a" in result_text(found)
    content = json.loads(json.dumps(named_result(found), allow_nan=False))
    assert content["PQ"] is None and content["other_measures"]["mIoU"] is None
    names = dict.fromkeys(found.images, "")
    assert "cannot be compared" in compare_results(found, found, names).sentence()
    assert segment_csv(found, names).count("\n") == 1


@pytest.fixture
def files(tmp_path) -> dict[str, tuple[str, str]]:
    """JSON and PNG folder of a truth and of two results, three images each."""
    found = {}
    for kind, widths in (("gt", (10, 10, 10)), ("a", (6, 7, 9)), ("b", (9, 9, 9))):
        images = []
        for i, width in enumerate(widths):
            gt_ids, gt, ids, segments = car(width)
            ids, segments = (gt_ids, gt) if kind == "gt" else (ids, segments)
            images.append((i, f"{i}.png", ids, with_areas(ids, segments)))
        found[kind] = write_dataset(tmp_path, kind, images)
    return found


def test_the_command(files, tmp_path, capsys):
    output = tmp_path / "comparison.json"
    (gt, _), (a, root), (b, other) = files.values()
    arguments = ["--gt", gt, "--compare", a, b, "--output", str(output)]
    assert evaluate.main([*arguments, "--pred-root", root, other]) == 0
    printed = capsys.readouterr().out
    assert f"A: {a}\nB: {b}\nB is better than A by 8.33 points" in printed
    assert "| 0.png   |       80.00 |" in printed and "beyond noise" in printed
    content = json.loads(output.read_text())
    assert content["differences"]["PQ"]["difference"] == pytest.approx(25 / 3)
    assert [image["image_id"] for image in content["per_image"]] == [0, 1, 2]
    assert evaluate.main([*arguments, "--pred-root", root]) == 2
    assert "--pred-root names 1 folders for 2 JSONs" in capsys.readouterr().err
    assert evaluate.main([*arguments, "--segments", "x.csv"]) == 2
    assert "--segments is of one result" in capsys.readouterr().err
    for name, dropped in ((a, 0), (b, 2)):
        content = json.loads(Path(name).read_text())
        content["annotations"].pop(dropped)
        Path(name).write_text(json.dumps(content))
    assert evaluate.main(arguments) == 2
    assert evaluate.main([*arguments, "--only-common"]) == 0
    printed = capsys.readouterr().out
    assert "B - A: +10.00 points of PQ; one image says no more." in printed
    assert re.search(r"\| \*\*PQ\*\* +\| +85.00 \| +95.00 \| +\+10.00 \| +n/a \|", printed)
    assert f"{a}: 2 images are in both files" in printed
