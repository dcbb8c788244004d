"""PanopticEvaluator: the model's side of the evaluation."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.utils import comm

from panoptic_ext.data import read_id_map, write_id_map
from panoptic_ext.errors import EvaluationError
from panoptic_ext.evaluation import PanopticEvaluator, evaluate_files

from . import toy
from .reference import (
    CATEGORIES,
    IS_THING,
    count_image,
    segment,
    summarize,
    with_areas,
    write_dataset,
)

KEYS = ["PQ", "SQ", "RQ", "PQ_th", "SQ_th", "RQ_th", "PQ_st", "SQ_st", "RQ_st"]


@pytest.fixture
def name(tmp_path):
    yield toy.register(tmp_path, "toy_panoptic")
    toy.unregister("toy_panoptic")


def run(evaluator, name, outputs):
    """Evaluate the outputs, in batches of two."""
    evaluator.reset()
    given = [i for i in toy.inputs(name) if i["image_id"] in outputs]
    for first in range(0, len(given), 2):
        batch = given[first : first + 2]
        evaluator.process(batch, [outputs[i["image_id"]] for i in batch])
    return evaluator.evaluate()


def test_perfect_prediction_and_keys(name, tmp_path, caplog):
    evaluator = PanopticEvaluator(name, str(tmp_path / "out"))
    assert isinstance(evaluator, COCOPanopticEvaluator)
    with caplog.at_level(logging.INFO):
        results = run(evaluator, name, toy.perfect())
    assert list(results) == ["panoptic_seg"] and list(results["panoptic_seg"]) == KEYS
    assert set(results["panoptic_seg"].values()) == {100.0}
    assert "| person " in caplog.text and "**Things** (2)" in caplog.text
    saved = json.loads((tmp_path / "out" / "panoptic_quality.json").read_text())
    assert saved["PQ"] == 100.0 and [c["name"] for c in saved["per_class"]][:2] == ["person", "car"]
    # the evaluator can be used again
    assert run(evaluator, name, toy.perfect())["panoptic_seg"]["PQ"] == 100.0


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_against_the_naive_program(name, threads):
    evaluator = PanopticEvaluator(name, num_threads=threads)
    results = run(evaluator, name, toy.imperfect())["panoptic_seg"]
    total = {c: [0.0, 0, 0, 0] for c in IS_THING}
    for image_id, output in toy.imperfect().items():
        ids, info = output["panoptic_seg"]
        back = [{**s, "category_id": CATEGORIES[s["category_id"]]["id"]} for s in info]
        counts = count_image(*toy.truth(image_id), ids.numpy(), back)
        for category, found in counts.items():
            total[category] = [a + b for a, b in zip(total[category], found, strict=True)]
    expected = summarize(total)
    assert results["PQ"] == pytest.approx(100 * expected["All"]["pq"], rel=1e-12)
    assert results["RQ_st"] == pytest.approx(100 * expected["Stuff"]["rq"], rel=1e-12)
    assert 0 < results["PQ"] < 100
    losses = math.fsum(image["loss"] for image in evaluator.per_image)
    assert losses + results["PQ"] == pytest.approx(100)


def test_output_of_the_model_is_left_as_it_was(name):
    outputs = toy.imperfect()
    before = copy.deepcopy(outputs)
    run(PanopticEvaluator(name, keep_predictions=2), name, outputs)
    for image_id, output in outputs.items():
        ids, info = output["panoptic_seg"]
        assert torch.equal(ids, before[image_id]["panoptic_seg"][0])
        assert info == before[image_id]["panoptic_seg"][1]
        assert all(isinstance(s["isthing"], np.bool_) for s in info)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_without_segments_info(name, dtype):
    outputs = {}
    for image_id in toy.NAMES:
        ids, segments = toy.truth(image_id)
        encoded = np.full(ids.shape, -1, np.int64)
        for instance, s in enumerate(segments):
            encoded[ids == s["id"]] = toy.UNIFIED[s["category_id"]] * 1000 + instance
        outputs[image_id] = {"panoptic_seg": (torch.from_numpy(encoded).to(dtype), None)}
    before = outputs["a"]["panoptic_seg"][0].clone()
    results = run(PanopticEvaluator(name), name, outputs)["panoptic_seg"]
    assert set(results.values()) == {100.0}
    assert torch.equal(outputs["a"]["panoptic_seg"][0], before)


def test_dataset_ids_without_isthing(name):
    outputs = toy.perfect()
    for output in outputs.values():
        for s in output["panoptic_seg"][1]:
            s["category_id"] = CATEGORIES[s["category_id"]]["id"]
            del s["isthing"]
    assert run(PanopticEvaluator(name), name, outputs)["panoptic_seg"]["PQ"] == 100.0


def test_separate_id_spaces_of_detectron2(name):
    """Things and stuff each from 0, as in coco_2017_val_panoptic_separated."""
    old = MetadataCatalog.get(name)
    MetadataCatalog.get("toy_separated").set(
        panoptic_json=old.panoptic_json,
        panoptic_root=old.panoptic_root,
        thing_dataset_id_to_contiguous_id={7: 0, 3: 1},
        stuff_dataset_id_to_contiguous_id={0: 0, 90: 1, 21: 2},
        label_divisor=1000,
    )
    contiguous = {7: 0, 3: 1, 90: 1, 21: 2}
    outputs = toy.perfect()
    for output in outputs.values():
        for s in output["panoptic_seg"][1]:
            s["category_id"] = contiguous[CATEGORIES[s["category_id"]]["id"]]
            s["isthing"] = bool(s["isthing"])
    try:
        assert run(PanopticEvaluator("toy_separated"), name, outputs)["panoptic_seg"]["PQ"] == 100.0
    finally:
        MetadataCatalog.remove("toy_separated")


def test_images_are_joined_by_id_and_counted_once(name):
    evaluator = PanopticEvaluator(name)
    evaluator.reset()
    given, outputs = toy.inputs(name), toy.imperfect()
    for i in [*given[::-1], given[0], given[0]]:
        evaluator.process([i], [outputs[i["image_id"]]])
    results = evaluator.evaluate()
    assert results == run(PanopticEvaluator(name), name, outputs)
    assert [i["image_id"] for i in evaluator.per_image] == list("abc")
    assert evaluator.per_image[0]["file_name"].endswith("north/1.png")


def test_worst_and_best_are_kept(name):
    evaluator = PanopticEvaluator(name, keep_predictions=1)
    run(evaluator, name, toy.imperfect())
    (worst,), (best,) = evaluator.worst, evaluator.best
    assert (worst.image_id, best.image_id) == ("c", "b")
    assert worst.pq == 0.0 and best.pq == 100.0
    assert (best.ids() == toy.truth("b")[0]).all()
    assert [s["category_id"] for s in worst.segments_info] == [toy.UNIFIED[90]]
    run(PanopticEvaluator(name, keep_predictions=9), name, toy.imperfect())


def test_predictions_are_written_in_coco_format(name, tmp_path):
    out = tmp_path / "out"
    results = run(PanopticEvaluator(name, str(out), write_predictions=True), name, toy.imperfect())
    meta = MetadataCatalog.get(name)
    found = evaluate_files(
        meta.panoptic_json,
        meta.panoptic_root,
        str(out / "panoptic_predictions.json"),
        str(out / "panoptic_predictions"),
    )
    assert 100 * found.summary["All"]["pq"] == results["panoptic_seg"]["PQ"]
    content = json.loads((out / "panoptic_predictions.json").read_text())
    assert [a["file_name"] for a in content["annotations"]] == list(toy.NAMES.values())
    ids = read_id_map(out / "panoptic_predictions" / "south/1.png")
    assert (ids == toy.truth("b")[0]).all()
    info = content["annotations"][1]["segments_info"]
    car = next(s for s in info if s["id"] == 7)
    assert (car["category_id"], car["area"], car["bbox"]) == (3, 80, [20, 14, 10, 8])


def test_unwritable_output(name, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match="cannot make"):
        PanopticEvaluator(name, str(tmp_path / "file" / "out"))
    with pytest.raises(EvaluationError, match="needs an output_dir"):
        PanopticEvaluator(name, write_predictions=True)


def test_divisor_encoded_truth_without_segments_info(tmp_path):
    ids = np.zeros((8, 8), np.int64)
    ids[:4], ids[4:6, :4], ids[4:6, 4:], ids[6:] = 21, 7000, 7001, 3  # 3: cars without instances
    (tmp_path / "png").mkdir()
    write_id_map(tmp_path / "png" / "x.png", ids, "divisor")
    content = {
        "images": [{"id": "x", "file_name": "x.png", "height": 8, "width": 8}],
        "annotations": [{"image_id": "x", "file_name": "x.png"}],
        "categories": CATEGORIES,
    }
    (tmp_path / "gt.json").write_text(json.dumps(content))
    meta = MetadataCatalog.get("toy_divisor").set(
        panoptic_json=str(tmp_path / "gt.json"),
        panoptic_root=str(tmp_path / "png"),
        panoptic_encoding="divisor",
        label_divisor=1000,
        thing_dataset_id_to_contiguous_id={7: 0, 3: 1},
        stuff_dataset_id_to_contiguous_id={90: 2, 21: 3},
    )
    try:
        evaluator = PanopticEvaluator(meta.name)
        pred = np.where(ids == 3, 0, ids)
        info = [segment(21, 21), segment(7000, 7), segment(7001, 7)]
        evaluator.process([{"image_id": "x"}], [toy.prediction(pred, info)])
        evaluator.evaluate()
    finally:
        MetadataCatalog.remove("toy_divisor")
    per_class = evaluator.summary["per_class"]
    assert per_class[7]["tp"] == 2 and per_class[21]["tp"] == 1
    assert per_class[3]["fn"] == 0  # a crowd


def change(outputs, image_id, **values):
    ids, info = outputs[image_id]["panoptic_seg"]
    outputs[image_id] = {"panoptic_seg": (values.get("ids", ids), values.get("info", info))}
    return outputs


def test_bad_outputs_name_the_image(name):
    evaluator = PanopticEvaluator(name)
    small = torch.from_numpy(toy.truth("b")[0][:1].astype(np.int32))
    info = toy.perfect()["b"]["panoptic_seg"][1]
    ghost = [*info, {"id": 9, "category_id": 0, "isthing": True}]
    stuff_as_thing = [{**s, "isthing": True} for s in info]
    cases = [
        ({"info": info[1:]}, r"image 'b': predicted segment ids 500 are in the label map but not"),
        ({"info": ghost}, r"image 'b': predicted segment ids 9 .* no pixel"),
        (
            {"info": stuff_as_thing},
            r"image 'b': segment 500 .* category_id 2, .* thing categories",
        ),
        ({"ids": small, "info": info[:1]}, r"image 'b': the prediction is 1 x 32, .* 24 x 32"),
        ({"ids": small.float()}, r"image 'b' is an array of float32"),
    ]
    for values, message in cases:
        with pytest.raises(EvaluationError, match=message):
            run(evaluator, name, change(toy.perfect(), "b", **values))
    with pytest.raises(
        EvaluationError, match=r"image 'b'.* has no 'panoptic_seg' \(found: \['x'\]"
    ):
        run(evaluator, name, {**toy.perfect(), "b": {"x": 1}})


def test_missing_and_extra_predictions(name):
    evaluator = PanopticEvaluator(name)
    outputs = toy.perfect()
    del outputs["b"]
    with pytest.raises(EvaluationError, match=r"1 of 3 images of .*: image ids 'b'"):
        run(evaluator, name, outputs)
    with pytest.raises(EvaluationError, match=r"prediction for image 'z' .* not in"):
        evaluator.process([{"image_id": "z", "file_name": "z.jpg"}], [toy.perfect()["a"]])


def test_wrong_area_in_the_truth(name):
    path = Path(MetadataCatalog.get(name).panoptic_json)
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"][4]["area"] = 8000
    path.write_text(json.dumps(content))
    with pytest.raises(EvaluationError, match=r"image 'a' \(.*north.1.png\).* area of 8000.* 80 "):
        run(PanopticEvaluator(name), name, toy.perfect())
    for gt_area, low, high in (("pixels", 100, 100), ("json", 1, 99)):
        results = run(PanopticEvaluator(name, gt_area=gt_area), name, toy.perfect())
        assert low <= results["panoptic_seg"]["PQ"] <= high


def test_truth_that_cannot_be_read(name):
    root = Path(MetadataCatalog.get(name).panoptic_root)
    content = (root / "south/1.png").read_bytes()
    (root / "south/1.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(EvaluationError, match=r"south.1.png is damaged"):
        run(PanopticEvaluator(name), name, toy.perfect())
    (root / "south/1.png").write_text("<html>")
    with pytest.raises(EvaluationError, match=r"south.1.png is not an image"):
        run(PanopticEvaluator(name), name, toy.perfect())


def test_stuff_only_predictions_and_truth_give_nan_not_a_crash(tmp_path, caplog):
    evaluator_name = toy.register(tmp_path, "toy_stuff")
    path = Path(MetadataCatalog.get(evaluator_name).panoptic_json)
    content = json.loads(path.read_text())
    content["annotations"] = content["annotations"][2:]
    path.write_text(json.dumps(content))
    try:
        evaluator = PanopticEvaluator(evaluator_name)
        evaluator.process([{"image_id": "c", "file_name": "c"}], [toy.perfect()["c"]])
        results = evaluator.evaluate()["panoptic_seg"]
    finally:
        toy.unregister(evaluator_name)
    assert results["PQ"] == 100.0 and math.isnan(results["PQ_th"])
    assert "Not available" in caplog.text


class FakeWorkers:
    """comm for workers that are threads."""

    def __init__(self, size: int):
        self._barrier = threading.Barrier(size)
        self._values: list = [None] * size
        self.local = threading.local()

    def all_gather(self, value, group=None):
        self._values[self.local.rank] = value
        self._barrier.wait(20)
        found = list(self._values)
        self._barrier.wait(20)
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
    expected = run(alone, name, toy.imperfect())
    found = evaluate_by_workers(monkeypatch, name, toy.imperfect(), parts, keep_predictions=1)
    assert found[0][0] == expected
    assert [result for result, _ in found[1:]] == [None] * (len(parts) - 1)
    assert found[0][1].per_image == alone.per_image
    assert found[0][1].worst == alone.worst and found[0][1].best == alone.best


def test_an_error_of_one_worker_stops_all(name, monkeypatch):
    root = Path(MetadataCatalog.get(name).panoptic_root)
    (root / "south/1.png").write_text("<html>")
    for error, _ in evaluate_by_workers(monkeypatch, name, toy.perfect(), ("ac", "b")):
        assert isinstance(error, EvaluationError) and "south" in str(error)
    monkeypatch.undo()
    outputs = change(toy.perfect(), "b", info=[])
    for error, _ in evaluate_by_workers(monkeypatch, name, outputs, ("ac", "b")):
        assert isinstance(error, EvaluationError) and "image 'b': predicted segment" in str(error)
    monkeypatch.undo()
    for error, _ in evaluate_by_workers(monkeypatch, name, toy.perfect(), ("a", "c")):
        assert isinstance(error, EvaluationError) and "no prediction" in str(error)


@pytest.mark.slow
def test_two_processes_over_gloo(tmp_path):
    def start(rank: int, size: int) -> subprocess.Popen:
        command = [sys.executable, "-W", "ignore", "-m", "tests.evaluation.gloo_worker"]
        return subprocess.Popen(
            [*command, str(tmp_path), str(rank), str(size)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    printed = {}
    for size in (1, 2):
        workers = [start(rank, size) for rank in range(size)]
        outputs = [worker.communicate(timeout=120)[0] for worker in workers]
        assert [worker.returncode for worker in workers] == [0] * size
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
        expected = run(PanopticEvaluator("toy_many"), "toy_many", outputs)
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
