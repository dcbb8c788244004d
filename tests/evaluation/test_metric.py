"""PanopticQuality: the numbers of evaluate_files from maps in memory, on any number of workers."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import pq_metric
from panoptic_ext.errors import EvaluationError
from panoptic_ext.evaluation import PanopticQuality, evaluate_files
from panoptic_ext.evaluation.report import metric_keys, named_result
from tests.evaluation.matches import CAR, SKY, Sample, random_samples, row
from tests.evaluation.reference import CATEGORIES, IS_THING, segment, write_dataset
from tests.evaluation.test_workers import FakeWorkers
from tests.pretended_cuda import PretendedCuda
from tests.tiny.programs import run_workers


def fill(
    metric: PanopticQuality,
    samples: list[Sample],
    convert: Callable = np.asarray,
    named: bool = False,
) -> PanopticQuality:
    for number, (gt_ids, gt, pred_ids, pred) in enumerate(samples):
        image_id = number if named else None
        metric.update(convert(pred_ids), pred, convert(gt_ids), gt, image_id=image_id)
    return metric


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_it_is_the_result_of_files(seed: int):
    samples = random_samples(seed, number=3)
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for kind, at in (("gt", 0), ("pred", 2)):
            images = [(i, f"{i}.png", s[at], s[at + 1]) for i, s in enumerate(samples)]
            files += write_dataset(Path(folder), kind, images)
        expected = evaluate_files(*files, num_threads=0, boundary=True)
    metric = fill(PanopticQuality(CATEGORIES, boundary=True), samples)
    np.testing.assert_equal(metric.compute(), metric_keys(expected.summary))
    assert named_result(metric.measures()) == named_result(expected.measures)


KINDS = [np.int64, np.int32, np.uint32, torch.int64, torch.int32, "list"]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_kinds_of_maps(kind):
    samples = random_samples(3, number=6)
    expected = fill(PanopticQuality(CATEGORIES), samples).compute()

    def convert(ids: np.ndarray):
        if kind == "list":
            return ids.tolist()
        if isinstance(kind, torch.dtype):
            # not contiguous, as after a crop
            return torch.from_numpy(np.stack([ids, ids], -1)).to(kind)[..., 0]
        return np.asfortranarray(ids.astype(kind))

    np.testing.assert_equal(fill(PanopticQuality(CATEGORIES), samples, convert).compute(), expected)


def test_maps_on_a_pretended_device():
    samples = random_samples(4, number=3)
    expected = fill(PanopticQuality(CATEGORIES), samples).compute()
    with PretendedCuda():
        found = fill(
            PanopticQuality(CATEGORIES), samples, lambda ids: torch.from_numpy(ids).to("cuda")
        ).compute()
    np.testing.assert_equal(found, expected)


@pytest.mark.gpu
def test_maps_on_a_device():
    samples = random_samples(4, number=3)
    expected = fill(PanopticQuality(CATEGORIES), samples).compute()
    found = fill(PanopticQuality(CATEGORIES), samples, lambda ids: torch.from_numpy(ids).cuda())
    np.testing.assert_equal(found.compute(), expected)


def test_merge_and_reset():
    samples = random_samples(5, number=6)
    whole = fill(PanopticQuality(CATEGORIES), samples)
    first, second = PanopticQuality(CATEGORIES), PanopticQuality(CATEGORIES)
    fill(first, samples[:2])
    fill(second, samples[2:])
    second.merge(first)
    np.testing.assert_equal(second.compute(), whole.compute())
    assert (len(first), len(second)) == (2, 6)
    second.reset()
    assert len(second) == 0
    with pytest.raises(EvaluationError, match=r"no image to compute .* call update first"):
        second.compute()
    np.testing.assert_equal(fill(second, samples).compute(), whole.compute())
    with pytest.raises(EvaluationError, match="different categories"):
        second.merge(PanopticQuality({1: True}))


def test_an_image_id_counts_once():
    samples = random_samples(6, number=3)
    expected = fill(PanopticQuality(CATEGORIES), samples, named=True).compute()
    metric = fill(PanopticQuality(CATEGORIES), samples, named=True)
    # Others under the same ids: the first ones count.
    fill(metric, random_samples(60, number=3), named=True)
    other = fill(PanopticQuality(CATEGORIES), samples[:2], named=True)
    metric.merge(other)
    assert len(metric) == 3
    np.testing.assert_equal(metric.compute(), expected)


@pytest.mark.parametrize("named", [False, True])
def test_workers_that_are_threads(monkeypatch, named: bool):
    samples = random_samples(7, number=5)
    expected = fill(PanopticQuality(CATEGORIES), samples).compute()
    workers = FakeWorkers(3)
    monkeypatch.setattr(comm, "all_gather", workers.all_gather)
    # The last worker has none. With ids two of them share an image.
    parts = [[0, 1, 2], [2, 3, 4] if named else [3, 4], []]
    found: list = [None] * 3

    def work(rank: int) -> None:
        workers.local.rank = rank
        metric = PanopticQuality(CATEGORIES)
        for i in parts[rank]:
            gt_ids, gt, pred_ids, pred = samples[i]
            metric.update(pred_ids, pred, gt_ids, gt, image_id=i if named else None)
        found[rank] = metric.compute()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for result in found:
        np.testing.assert_equal(result, expected)


def _worker(rank: int, folder: str, size: int) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
    )
    samples = random_samples(8, number=5)
    metric = fill(PanopticQuality(CATEGORIES), samples[rank::size])
    print({key: value.hex() for key, value in metric.compute().items()})
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_over_gloo(tmp_path):
    outputs = run_workers(_worker, str(tmp_path), 2, number=2)
    expected = fill(PanopticQuality(CATEGORIES), random_samples(8, number=5)).compute()
    for output in outputs:
        last = output.strip().splitlines()[-1]
        assert last == str({key: value.hex() for key, value in expected.items()})


def test_categories_by_kind_alone():
    samples = random_samples(9, number=4)
    found = fill(PanopticQuality(IS_THING), samples)
    np.testing.assert_equal(found.compute(), fill(PanopticQuality(CATEGORIES), samples).compute())
    assert found.measures().class_names == ["7", "3", "90", "21"]


@pytest.mark.parametrize(
    "categories",
    [
        [{"id": 1}],
        [{"id": -1, "isthing": 1}],
        [{"id": "1", "isthing": 1}],
        [{"id": 1, "isthing": 2}],
        [{"id": 1, "isthing": 1}, {"id": 1, "isthing": 0}],
    ],
)
def test_bad_categories(categories):
    with pytest.raises(EvaluationError, match=r"category .*expected an id from 0 on"):
        PanopticQuality(categories)


BAD = [
    ((row((1, 4)), []), r"prediction for image number 1: predicted segment ids 1 .* not in"),
    ((row((1, 4)), [segment(1, 66)]), r"prediction for image number 1, segment 1: unknown"),
    ((row((1, 3)), [segment(1, CAR)]), r"image number 1: the prediction is 1 x 3"),
    ((torch.zeros(1, 4), []), r"prediction for image number 1 is an array of float32"),
    ((np.zeros((2, 1, 4), int), []), r"of shape \(2, 1, 4\)"),
]


@pytest.mark.parametrize(("pred", "message"), BAD)
def test_bad_maps(pred, message: str):
    metric = PanopticQuality(CATEGORIES)
    with pytest.raises(EvaluationError, match=message):
        metric.update(*pred, row((5, 4)), [segment(5, SKY)])
    assert len(metric) == 0
    with pytest.raises(EvaluationError, match=r"truth of image 'a'"):
        metric.update(row((1, 4)), [segment(1, CAR)], -row((5, 4)), [], image_id="a")


def test_torchmetrics_agrees_where_the_rules_do():
    pytest.importorskip("torchmetrics")
    rng = np.random.default_rng(0)
    samples = [pq_metric.sample(rng, 48, 64, 12) for _ in range(3)]
    found, _ = pq_metric.ours(samples, torch.from_numpy)
    assert found == pytest.approx(pq_metric.theirs(samples)[0], rel=1e-6)
    assert 20 < found < 99


def test_nothing_of_the_inputs_is_changed():
    gt_ids, gt, pred_ids, pred = random_samples(10, number=1)[0]
    copies = gt_ids.copy(), [dict(s) for s in gt], pred_ids.copy(), [dict(s) for s in pred]
    fill(PanopticQuality(CATEGORIES), [(gt_ids, gt, pred_ids, pred)])
    np.testing.assert_array_equal(gt_ids, copies[0])
    np.testing.assert_array_equal(pred_ids, copies[2])
    assert (gt, pred) == (copies[1], copies[3])
