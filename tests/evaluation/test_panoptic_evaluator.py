"""PanopticEvaluator: the model's side of the evaluation."""

from __future__ import annotations

import copy
import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator

from panoptic_ext.data import read_id_map, write_id_map
from panoptic_ext.evaluation import PanopticEvaluator, evaluate_files
from tests.evaluation.reference import CATEGORIES, IS_THING, count_image, segment, summarize
from tests.tiny import predictions as toy

KEYS = ["PQ", "SQ", "RQ", "PQ_th", "SQ_th", "RQ_th", "PQ_st", "SQ_st", "RQ_st"]


def test_perfect_prediction_and_keys(name, tmp_path, caplog):
    evaluator = PanopticEvaluator(name, str(tmp_path / "out"))
    assert isinstance(evaluator, COCOPanopticEvaluator)
    with caplog.at_level(logging.INFO):
        results = toy.run(evaluator, name, toy.perfect())
    assert list(results) == ["panoptic_seg"] and list(results["panoptic_seg"]) == KEYS
    assert set(results["panoptic_seg"].values()) == {100.0}
    assert "| person " in caplog.text and "**Things** (2)" in caplog.text
    saved = json.loads((tmp_path / "out" / "panoptic_quality.json").read_text())
    assert saved["PQ"] == 100.0 and [c["name"] for c in saved["per_class"]][:2] == ["person", "car"]
    # the evaluator can be used again
    assert toy.run(evaluator, name, toy.perfect())["panoptic_seg"]["PQ"] == 100.0


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_against_the_naive_program(name, threads):
    evaluator = PanopticEvaluator(name, num_threads=threads)
    results = toy.run(evaluator, name, toy.imperfect())["panoptic_seg"]
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
    toy.run(PanopticEvaluator(name, keep_predictions=2), name, outputs)
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
            encoded[ids == s["id"]] = toy.CONTIGUOUS[s["category_id"]] * 1000 + instance
        outputs[image_id] = {"panoptic_seg": (torch.from_numpy(encoded).to(dtype), None)}
    before = outputs["a"]["panoptic_seg"][0].clone()
    results = toy.run(PanopticEvaluator(name), name, outputs)["panoptic_seg"]
    assert set(results.values()) == {100.0}
    assert torch.equal(outputs["a"]["panoptic_seg"][0], before)


def test_dataset_ids_without_isthing(name):
    outputs = toy.perfect()
    for output in outputs.values():
        for s in output["panoptic_seg"][1]:
            s["category_id"] = CATEGORIES[s["category_id"]]["id"]
            del s["isthing"]
    assert toy.run(PanopticEvaluator(name), name, outputs)["panoptic_seg"]["PQ"] == 100.0


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
        assert (
            toy.run(PanopticEvaluator("toy_separated"), name, outputs)["panoptic_seg"]["PQ"]
            == 100.0
        )
    finally:
        MetadataCatalog.remove("toy_separated")


def test_images_are_joined_by_id_and_counted_once(name):
    evaluator = PanopticEvaluator(name)
    evaluator.reset()
    given, outputs = toy.inputs(name), toy.imperfect()
    for i in [*given[::-1], given[0], given[0]]:
        evaluator.process([i], [outputs[i["image_id"]]])
    results = evaluator.evaluate()
    assert results == toy.run(PanopticEvaluator(name), name, outputs)
    assert [i["image_id"] for i in evaluator.per_image] == list("abc")
    assert evaluator.per_image[0]["file_name"].endswith("north/1.png")


def test_worst_and_best_are_kept(name):
    evaluator = PanopticEvaluator(name, keep_predictions=1)
    toy.run(evaluator, name, toy.imperfect())
    (worst,), (best,) = evaluator.worst, evaluator.best
    assert (worst.image_id, best.image_id) == ("c", "b")
    assert worst.pq == 0.0 and best.pq == 100.0
    assert (best.ids() == toy.truth("b")[0]).all()
    assert [s["category_id"] for s in worst.segments_info] == [toy.CONTIGUOUS[90]]
    toy.run(PanopticEvaluator(name, keep_predictions=9), name, toy.imperfect())


def test_predictions_are_written_in_coco_format(name, tmp_path):
    out = tmp_path / "out"
    results = toy.run(
        PanopticEvaluator(name, str(out), write_predictions=True), name, toy.imperfect()
    )
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


def test_every_measure_is_in_the_log_and_the_json(name, tmp_path, caplog):
    evaluator = PanopticEvaluator(name, str(tmp_path / "out"), boundary=True)
    with caplog.at_level(logging.INFO, "panoptic_ext.evaluation.panoptic_evaluation"):
        results = toy.run(evaluator, name, toy.imperfect())["panoptic_seg"]
    for text in (
        "| points of PQ",
        "95 % intervals over draws of the 3 images",
        "| small (pixels) ",
        "PQ-dagger ",
        "boundary PQ ",
        "Most confused, segments",
    ):
        assert text in caplog.text, text
    content = json.loads((tmp_path / "out" / "panoptic_quality.json").read_text())
    assert math.fsum(content["costs"]["All"].values()) + results["PQ"] == pytest.approx(100)
    assert content["intervals"]["images"] == 3
    assert set(content["by_size"]) == {"pixels", "share"}
    assert content["confusion"]["classes"] == ["person", "car", "sky", "road"]
    assert content["other_measures"]["boundary_PQ"] <= results["PQ"]
    assert len(results) == 9  # the keys stay those of COCOPanopticEvaluator


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
