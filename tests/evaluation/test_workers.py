"""PanopticEvaluator on several workers: the same result, and errors that stop all of them."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from panoptic_ext.errors import EvaluationError
from panoptic_ext.evaluation import PanopticEvaluator
from panoptic_ext.evaluation.report import named_result
from tests import PATIENCE
from tests.evaluation import gloo_worker
from tests.evaluation.reference import segment, with_areas, write_dataset
from tests.tiny import predictions as toy
from tests.tiny.programs import run_workers


class FakeWorkers:
    """comm for workers that are threads."""

    def __init__(self, size: int):
        self._barrier = threading.Barrier(size)
        self._values: list = [None] * size
        self.local = threading.local()

    def all_gather(self, value, group=None):
        self._values[self.local.rank] = value
        self._barrier.wait(PATIENCE)
        found = list(self._values)
        self._barrier.wait(PATIENCE)
        return found

    def gather(self, value, dst=0, group=None):
        found = self.all_gather(value)
        return found if self.local.rank == dst else []


def evaluate_by_workers(monkeypatch, name, outputs, parts, **options):
    """[(result or error, evaluator)] of workers that each get the images of one part."""
    workers = FakeWorkers(len(parts))
    monkeypatch.setattr(comm, "all_gather", workers.all_gather)
    monkeypatch.setattr(comm, "gather", workers.gather)
    monkeypatch.setattr(comm, "get_world_size", lambda: len(parts))
    monkeypatch.setattr(comm, "is_main_process", lambda: workers.local.rank == 0)
    given = {i["image_id"]: i for i in toy.inputs(name)}
    found: list = [None] * len(parts)

    def work(rank: int) -> None:
        workers.local.rank = rank
        evaluator = PanopticEvaluator(name, **options)
        for image_id in parts[rank]:
            evaluator.process([given[image_id]], [outputs[image_id]])
        try:
            found[rank] = (evaluator.evaluate(), evaluator)
        except EvaluationError as error:
            found[rank] = (error, evaluator)

    threads = [threading.Thread(target=work, args=(r,)) for r in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


@pytest.mark.parametrize("parts", [("ac", "b"), ("c", "ba"), ("cb", "cba", "")])
def test_workers_agree_with_one_to_the_last_bit(name, monkeypatch, parts):
    alone = PanopticEvaluator(name, keep_predictions=1)
    expected = toy.run(alone, name, toy.imperfect())
    found = evaluate_by_workers(monkeypatch, name, toy.imperfect(), parts, keep_predictions=1)
    assert found[0][0] == expected
    assert [result for result, _ in found[1:]] == [None] * (len(parts) - 1)
    assert found[0][1].per_image == alone.per_image
    assert named_result(found[0][1].measures) == named_result(alone.measures)
    assert found[0][1].worst == alone.worst and found[0][1].best == alone.best


def test_an_error_of_one_worker_stops_all(name, monkeypatch):
    root = Path(MetadataCatalog.get(name).panoptic_root)
    (root / "south/1.png").write_text("<html>")
    for error, _ in evaluate_by_workers(monkeypatch, name, toy.perfect(), ("ac", "b")):
        assert isinstance(error, EvaluationError) and "south" in str(error)
    monkeypatch.undo()
    outputs = toy.change(toy.perfect(), "b", info=[])
    for error, _ in evaluate_by_workers(monkeypatch, name, outputs, ("ac", "b")):
        assert isinstance(error, EvaluationError) and "image 'b': predicted segment" in str(error)
    monkeypatch.undo()
    outputs = toy.change(toy.perfect(), "b", info=[{"category_id": "car"}])
    for error, _ in evaluate_by_workers(monkeypatch, name, outputs, ("ac", "b")):
        assert isinstance(error, EvaluationError) and "image 'b': a segment has" in str(error)
    monkeypatch.undo()
    for error, _ in evaluate_by_workers(monkeypatch, name, toy.perfect(), ("a", "c")):
        assert isinstance(error, EvaluationError) and "no prediction" in str(error)


@pytest.mark.slow
def test_two_processes_over_gloo(tmp_path):
    printed = {}
    for size in (1, 2):
        outputs = run_workers(gloo_worker.main, str(tmp_path), size, number=size)
        printed[size] = outputs[0].strip().splitlines()[-1]
    assert printed[1] == printed[2] and "'PQ': '0x" in printed[1]
    files = sorted(p.name for p in (tmp_path / "out2" / "panoptic_predictions").rglob("*.png"))
    assert files == ["1.png", "1.png", "2.png"]


def test_random_split_of_many_images(tmp_path, monkeypatch):
    """Sums of many IoUs do not depend on the workers."""
    rng = np.random.default_rng(1)
    images, outputs = [], {}
    for number in range(30):
        ids = np.repeat(rng.integers(1, 5, (6, 3)), 5, 1)
        segments = with_areas(ids, [segment(int(i), [7, 3, 90, 21][i - 1]) for i in np.unique(ids)])
        images.append((number, f"{number}.png", ids, segments))
        pred = np.where(rng.random(ids.shape) < 0.2, 0, ids)
        outputs[number] = toy.prediction(pred, [s for s in segments if (pred == s["id"]).any()])
    json_file, root = write_dataset(tmp_path, "many", images)
    MetadataCatalog.get("toy_many").set(
        panoptic_json=json_file,
        panoptic_root=root,
        thing_dataset_id_to_contiguous_id={7: 0, 3: 1},
        stuff_dataset_id_to_contiguous_id={90: 2, 21: 3},
    )
    DatasetCatalog.register(
        "toy_many", lambda: [{"image_id": i, "file_name": f"{i}.jpg"} for i in range(30)]
    )
    try:
        expected = toy.run(PanopticEvaluator("toy_many"), "toy_many", outputs)
        for seed in range(3):
            order = np.random.default_rng(seed).permutation(30).tolist()
            parts = (order[:7], order[7:])
            found = evaluate_by_workers(monkeypatch, "toy_many", outputs, parts)
            assert found[0][0] == expected
            monkeypatch.undo()
    finally:
        DatasetCatalog.remove("toy_many")
        MetadataCatalog.remove("toy_many")
    assert Counter(map(type, expected["panoptic_seg"].values())) == {float: 9}
