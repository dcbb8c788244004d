"""mIoU and AP of panoptic data sets, and what is built from a config."""

from __future__ import annotations

import json
import logging
import math

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.evaluation import coco_evaluation
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, Instances

from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.errors import ConfigError, EvaluationError
from panoptic_ext.evaluation import (
    PanopticEvaluator,
    PanopticInstanceEvaluator,
    PanopticSemSegEvaluator,
    build_evaluator,
)
from panoptic_ext.evaluation.instance_evaluation import has_compiled_cocoeval
from panoptic_ext.evaluation.metric_names import metric_names
from panoptic_ext.evaluation.semantic_evaluation import semantic_scores
from tests.evaluation.reference import CATEGORIES
from tests.tiny import predictions as toy


def scores(labels: np.ndarray) -> dict:
    """A model's output for a map of contiguous ids; void becomes class 0."""
    hot = torch.nn.functional.one_hot(torch.from_numpy(np.maximum(labels, 0)), len(CATEGORIES))
    return {"sem_seg": hot.permute(2, 0, 1).float()}


def labels_of(image_id: str) -> np.ndarray:
    """Contiguous ids of the truth; -1 is void."""
    ids, segments = toy.truth(image_id)
    labels = np.full(ids.shape, -1, np.int64)
    for s in segments:
        labels[ids == s["id"]] = toy.CONTIGUOUS[s["category_id"]]
    return labels


def instances(image_id: str, *, shrink: int = 0) -> dict:
    """The things of the truth as predictions; `shrink` cuts columns off their right side."""
    ids, segments = toy.truth(image_id)
    things = [s for s in segments if s["category_id"] in (7, 3) and not s["iscrowd"]]
    masks = (
        np.stack([ids == s["id"] for s in things]) if things else np.zeros((0, *ids.shape), bool)
    )
    boxes = []
    for mask in masks:
        columns = np.flatnonzero(mask.any(0))
        mask[:, columns[len(columns) - shrink :]] = False
        rows, columns = np.nonzero(mask)
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    result = Instances(ids.shape)
    result.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    result.scores = torch.ones(len(things))
    result.pred_classes = torch.tensor(
        [toy.CONTIGUOUS[s["category_id"]] for s in things], dtype=torch.int64
    )
    result.pred_masks = torch.from_numpy(masks)
    return {"instances": result}


def test_semantic_perfect_and_known_imperfect(name, tmp_path, caplog):
    evaluator = PanopticSemSegEvaluator(name, str(tmp_path / "out"), write_predictions=True)
    truth = {i: labels_of(i) for i in toy.NAMES}
    result = toy.run(evaluator, name, {i: scores(v) for i, v in truth.items()})["sem_seg"]
    assert result["mIoU"] == result["pACC"] == 100.0 and result["IoU-person"] == 100.0
    assert (tmp_path / "out" / "sem_seg_predictions.json").stat().st_size > 2

    evaluator = PanopticSemSegEvaluator(name, str(tmp_path / "out"))
    with caplog.at_level("INFO", "panoptic_ext"):
        toy.run(evaluator, name, {i: scores(v) for i, v in truth.items()})
    assert not (tmp_path / "out" / "sem_seg_predictions.json").exists(), "of an earlier evaluation"
    table = caplog.records[-1].getMessage().splitlines()
    assert table[0] == "Semantic Evaluation Results:"
    assert table[3].split() == ["|", "**All**", "|", "100.000", "|", "100.000", "|"]
    assert table[-1] == "fwIoU 100.000, pACC 100.000"

    pred = {i: np.where(v == 1, 3, v) for i, v in truth.items()}  # cars, crowds too, become road
    result = toy.run(PanopticSemSegEvaluator(name), name, {i: scores(v) for i, v in pred.items()})
    road = sum(int((v == 3).sum()) for v in truth.values())
    cars = sum(int((v == 1).sum()) for v in truth.values())
    assert cars == 160
    assert result["sem_seg"]["IoU-car"] == 0.0
    assert result["sem_seg"]["IoU-road"] == pytest.approx(100 * road / (road + cars))


def test_semantic_absent_classes_are_nan(name, tmp_path):
    evaluator = PanopticSemSegEvaluator(name)
    given = [i for i in toy.inputs(name) if i["image_id"] == "c"]
    evaluator.process(given, [scores(labels_of("c"))])
    result = evaluator.evaluate()["sem_seg"]
    assert result["mIoU"] == 100.0 and math.isnan(result["IoU-sky"])
    evaluator.reset()
    assert math.isnan(evaluator.evaluate()["sem_seg"]["mIoU"])


def test_a_class_that_is_predicted_and_not_true_counts_as_zero():
    """One rule on every version of Detectron2, whose own are 52.78 (v0.6) and 79.17."""
    confusion = np.array([[6, 0, 0, 0, 5], [0, 10, 0, 0, 0], [2, 2, 0, 0, 0], [0] * 5, [0] * 5])
    result = semantic_scores(confusion, ["a", "b", "c", "d"])
    assert result["IoU-a"] == pytest.approx(100 * 6 / 8)
    assert result["IoU-b"] == pytest.approx(100 * 10 / 12)
    assert result["IoU-c"] == 0.0 and math.isnan(result["ACC-c"])
    assert math.isnan(result["IoU-d"]) and math.isnan(result["ACC-d"])
    assert result["mIoU"] == pytest.approx(52.78, abs=0.005)
    assert result["fwIoU"] == pytest.approx(100 * (6 + 10) / 20)
    assert result["mACC"] == pytest.approx(79.17, abs=0.005)
    assert result["pACC"] == pytest.approx(100 * 16 / 20)


def test_the_evaluator_has_the_rule_of_semantic_scores(name, tmp_path):
    truth = labels_of("c")
    pred = truth.copy()
    pred[:2] = 2  # sky, which image c lacks
    assert not (truth == 2).any() and (truth[:2] >= 0).any()
    evaluator = PanopticSemSegEvaluator(name, str(tmp_path / "out"))
    evaluator.process([i for i in toy.inputs(name) if i["image_id"] == "c"], [scores(pred)])
    result = evaluator.evaluate()["sem_seg"]
    ious = [v for k, v in result.items() if k.startswith("IoU-") and not math.isnan(v)]
    assert result["IoU-sky"] == 0.0 and result["mIoU"] == pytest.approx(np.mean(ious))
    saved = torch.load(tmp_path / "out" / "sem_seg_evaluation.pth", weights_only=True)
    np.testing.assert_equal(saved, result)


def test_semantic_refuses_other_shapes(name):
    evaluator = PanopticSemSegEvaluator(name)
    given = toy.inputs(name)[:1]
    with pytest.raises(EvaluationError, match=r"image 'a': sem_seg .*\(3, 24, 32\).*\(4, 24, 32\)"):
        evaluator.process(given, [{"sem_seg": scores(labels_of("a"))["sem_seg"][:3]}])
    with pytest.raises(EvaluationError, match="prediction for image 'z'"):
        evaluator.process([{"image_id": "z"}], [scores(labels_of("a"))])


def test_instances_perfect_and_known_imperfect(name, tmp_path):
    evaluator = PanopticInstanceEvaluator(name, str(tmp_path / "out"))
    before = set(MetadataCatalog.list())
    result = toy.run(evaluator, name, {i: instances(i) for i in toy.NAMES})
    assert result["bbox"]["AP"] == pytest.approx(100) and result["segm"]["AP"] == pytest.approx(100)
    assert result["segm"]["AP-person"] == pytest.approx(100) and "AP-sky" not in result["segm"]
    assert set(MetadataCatalog.list()) == before

    content = json.loads((tmp_path / "out" / "toy_panoptic_instances.json").read_text())
    assert [c["id"] for c in content["categories"]] == [3, 7]
    assert sorted((a["category_id"], a["iscrowd"], a["area"]) for a in content["annotations"]) == [
        (3, 0, 80),
        (3, 1, 80),
        (7, 0, 72),
        (7, 0, 72),
        (7, 0, 84),
        (7, 0, 84),
    ]
    # masks of people lose 2 of 6 columns and the car 2 of 10: IoU 2/3 and 4/5
    result = toy.run(evaluator, name, {i: instances(i, shrink=2) for i in toy.NAMES})["segm"]
    assert result["AP50"] == pytest.approx(100)
    assert result["AP-person"] == pytest.approx(40) and result["AP-car"] == pytest.approx(70)


@pytest.mark.parametrize("compiled", [True, False])
def test_compiled_cocoeval_is_used_where_it_is_there(compiled, name, tmp_path, monkeypatch):
    used = []

    class Compiled(coco_evaluation.COCOeval):
        def evaluate(self):
            used.append(self.params.iouType)
            super().evaluate()

    there = Compiled if compiled else coco_evaluation.COCOeval
    monkeypatch.setattr(coco_evaluation, "COCOeval_opt", there)
    evaluator = PanopticInstanceEvaluator(name, str(tmp_path / "out"))
    result = toy.run(evaluator, name, {i: instances(i, shrink=2) for i in toy.NAMES})
    assert used == (["bbox", "segm"] if compiled else [])
    assert result["segm"]["AP-car"] == pytest.approx(70)


@pytest.mark.skipif(not has_compiled_cocoeval(), reason="Detectron2 has no compiled operators")
def test_compiled_cocoeval_gives_the_same_numbers(name, tmp_path, monkeypatch):
    evaluator = PanopticInstanceEvaluator(name, str(tmp_path / "out"))
    fast = toy.run(evaluator, name, {i: instances(i, shrink=1) for i in toy.NAMES})
    monkeypatch.setattr(coco_evaluation, "COCOeval_opt", coco_evaluation.COCOeval)
    evaluator = PanopticInstanceEvaluator(name, str(tmp_path / "out"))
    slow = toy.run(evaluator, name, {i: instances(i, shrink=1) for i in toy.NAMES})
    for task in ("bbox", "segm"):
        assert fast[task] == pytest.approx(slow[task], abs=1e-9, nan_ok=True)


@pytest.mark.filterwarnings("error::DeprecationWarning")
def test_instances_are_evaluated_without_deprecated_calls(name, tmp_path):
    """Detectron2 makes numpy arrays of tensors in a way that numpy 2 deprecates."""
    evaluator = PanopticInstanceEvaluator(name, str(tmp_path / "out"))
    outputs = {i: instances(i) for i in toy.NAMES}
    result = toy.run(evaluator, name, outputs)
    assert result["segm"]["AP"] == pytest.approx(100)
    assert torch.is_tensor(outputs["a"]["instances"].pred_masks)  # the input is as it was


def test_truth_of_instances_is_written_once(name, tmp_path):
    path = tmp_path / "out" / "toy_panoptic_instances.json"
    outputs = {i: instances(i) for i in toy.NAMES}
    toy.run(PanopticInstanceEvaluator(name, str(tmp_path / "out")), name, outputs)
    written = path.stat().st_mtime_ns
    toy.run(PanopticInstanceEvaluator(name, str(tmp_path / "out")), name, outputs)
    assert path.stat().st_mtime_ns == written
    truth = MetadataCatalog.get(name).panoptic_json
    with open(truth, "a", encoding="utf-8") as stream:
        stream.write(" ")
    toy.run(PanopticInstanceEvaluator(name, str(tmp_path / "out")), name, outputs)
    assert path.stat().st_mtime_ns != written


def test_model_without_instances_and_wrong_classes(name, tmp_path):
    evaluator = PanopticInstanceEvaluator(name, str(tmp_path / "out"))
    nothing = instances("c")
    assert len(nothing["instances"]) == 0
    result = toy.run(evaluator, name, dict.fromkeys(toy.NAMES, nothing))
    assert math.isnan(result["bbox"]["AP"])
    evaluator.reset()
    wrong = instances("a")
    wrong["instances"].pred_classes[:] = toy.CONTIGUOUS[90]
    with pytest.raises(EvaluationError, match=r"image 'a': .* classes \[2\].* things .*: \[0, 1\]"):
        evaluator.process(toy.inputs(name)[:1], [wrong])


def test_instances_of_another_size(name, tmp_path):
    evaluator = PanopticInstanceEvaluator(name, str(tmp_path / "out"))
    given = toy.inputs(name)[:1]
    output = instances("a")
    output["instances"].pred_masks = output["instances"].pred_masks[:, :12]
    with pytest.raises(EvaluationError, match=r"'a': .* \(12, 32\); expected \(24, 32\)"):
        evaluator.process(given, [output])
    other = Instances((10, 10), **instances("a")["instances"].get_fields())
    evaluator.reset()
    with pytest.raises(EvaluationError, match=r"'a': .* \(10, 10\); expected \(24, 32\)"):
        evaluator.process(given, [{"instances": other}])


def config(*evaluators: str, **test):
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.TEST.EVALUATORS = list(evaluators)
    for key, value in test.items():
        cfg.TEST[key] = value
    return cfg


def test_build_all(name, tmp_path):
    cfg = config("panoptic", "semantic", "instance", CONTACT_SHEET=1, WRITE_PREDICTIONS=True)
    evaluators = build_evaluator(cfg, name, str(tmp_path / "out"))
    assert len({id(e.evaluator.truth) for e in evaluators.evaluators}) == 1  # read once
    outputs = {i: {**toy.perfect()[i], **scores(labels_of(i)), **instances(i)} for i in toy.NAMES}
    results = toy.run(evaluators, name, outputs)
    assert list(results) == ["panoptic_seg", "sem_seg", "bbox", "segm"]
    known = [metric for e in cfg.TEST.EVALUATORS for metric in metric_names(e, name)]
    assert sorted(known) == sorted(flatten_results_dict(results))
    assert results["panoptic_seg"]["PQ"] == results["sem_seg"]["mIoU"] == 100.0
    assert isinstance(evaluators.panoptic, PanopticEvaluator)
    assert len(evaluators.panoptic.worst) == 1 and len(evaluators.panoptic.per_image) == 3
    assert (tmp_path / "out" / "panoptic_predictions.json").is_file()


def test_evaluators_of_missing_outputs_are_skipped(name, tmp_path, caplog):
    evaluators = build_evaluator(config("panoptic", "semantic", "instance"), name, str(tmp_path))
    with caplog.at_level(logging.INFO):
        results = toy.run(evaluators, name, toy.perfect())
    assert list(results) == ["panoptic_seg"]
    assert caplog.text.count("the model gives no 'sem_seg': skipped") == 1
    assert caplog.text.count("the model gives no 'instances': skipped") == 1


def test_build_refuses_unknown_names(name, tmp_path):
    with pytest.raises(ConfigError, match=r"'panoptics'; did you mean 'panoptic'\? known"):
        build_evaluator(config("panoptics"), name, str(tmp_path))
    assert build_evaluator(config(), name, str(tmp_path)).panoptic is None
