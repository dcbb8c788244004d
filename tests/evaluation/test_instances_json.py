"""AP of data sets of instances alone, on their own JSON."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.evaluation import CityscapesInstanceEvaluator
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, Instances

from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.data import register_instances
from panoptic_ext.errors import EvaluationError
from panoptic_ext.evaluation import build_evaluator
from panoptic_ext.evaluation.instance_evaluation import has_compiled_cocoeval
from panoptic_ext.evaluation.instances_json_evaluation import build_instances_json_evaluator
from panoptic_ext.evaluation.metric_names import metric_names
from tests.tiny.instance_dataset import CUP, HEIGHT, PLATE, WIDTH, TinyInstances

NAME = "tiny_instances_val"


@pytest.fixture
def data(tmp_path: Path, clean_catalogs: None) -> TinyInstances:
    data = TinyInstances(tmp_path / "tiny")
    register_instances(NAME, data.json, data.images)
    return data


def prediction(data: TinyInstances, *classes: int, cut: int = 0) -> dict:
    """The masks of some classes; `cut` takes so many columns off their left side."""
    masks = np.stack([data.masks[c].copy() for c in classes])
    boxes = []
    for mask in masks:
        mask[:, : np.flatnonzero(mask.any(0))[0] + cut] = False
        rows, columns = np.nonzero(mask)
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    result = Instances((HEIGHT, WIDTH))
    result.pred_boxes = Boxes(torch.tensor(np.array(boxes), dtype=torch.float32))
    result.pred_masks = torch.from_numpy(masks)
    result.pred_classes = torch.tensor(classes)
    result.scores = torch.ones(len(classes))
    return {"instances": result}


def results_of(data: TinyInstances, folder: Path, outputs: list[dict]) -> dict:
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.TEST.EVALUATORS = ["panoptic", "semantic", "instance"]
    evaluator = build_evaluator(cfg, NAME, str(folder))
    evaluator.reset()
    evaluator.process([{"image_id": 1}, {"image_id": 2}], outputs)
    return evaluator.evaluate()


@pytest.mark.filterwarnings("error::DeprecationWarning")  # np.array of a tensor, in numpy 2
def test_masks_of_the_truth_that_overlap_have_ap_100(data, tmp_path):
    """In a panoptic map the cup would be missing from the plate, or the plate from the cup."""
    outputs = [prediction(data, PLATE, CUP), prediction(data, PLATE)]
    results = results_of(data, tmp_path / "out", outputs)
    assert set(results) == {"bbox", "segm"}
    assert sorted(metric_names("instance", NAME)) == sorted(flatten_results_dict(results))
    assert metric_names("panoptic", NAME) == ()
    for task in ("bbox", "segm"):
        assert results[task]["AP"] == pytest.approx(100)
        assert results[task]["AP-cup"] == pytest.approx(100)
        assert results[task]["AP-plate"] == pytest.approx(100)


def test_ap_counts_the_thresholds_that_a_mask_reaches(data, tmp_path):
    """With 12 of 40 columns gone the plate has IoU 0.7: thresholds 0.50 to 0.70 of ten."""
    outputs = [prediction(data, PLATE, cut=12), prediction(data, PLATE, cut=12)]
    results = results_of(data, tmp_path / "out", outputs)
    assert results["segm"]["AP-plate"] == pytest.approx(50, abs=1e-3)
    assert results["segm"]["AP-cup"] == 0


def test_ap_is_of_the_compiled_cocoeval_where_there_is_one(data, tmp_path):
    """The same for the JSON's own evaluator."""
    evaluator = build_instances_json_evaluator(NAME, str(tmp_path))
    assert evaluator._use_fast_impl == has_compiled_cocoeval()


def test_cityscapes_has_its_own_evaluator(tmp_path):
    name = "cityscapes_fine_instance_seg_val"
    evaluator = build_instances_json_evaluator(name, str(tmp_path))
    assert isinstance(evaluator, CityscapesInstanceEvaluator)
    assert metric_names("instance", name) is None


def test_an_evaluator_of_another_kind_is_refused(tmp_path, clean_catalogs):
    MetadataCatalog.get("keypoints").set(evaluator_type="keypoints")
    with pytest.raises(EvaluationError, match="evaluator_type 'keypoints', expected 'coco'"):
        build_instances_json_evaluator("keypoints", str(tmp_path))
