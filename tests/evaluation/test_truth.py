"""The one ground truth of an evaluation, with both kinds of category id."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from panoptic_ext.errors import DatasetError, EvaluationError
from panoptic_ext.evaluation import Truth
from tests.tiny import predictions as toy


def test_both_kinds_of_id(name):
    truth = Truth(name)
    annotation = truth.find("b")
    ids, segments = toy.truth("b")

    table = truth.table(annotation, truth.runs(annotation))
    assert table.categories.tolist() == [s["category_id"] for s in segments]
    assert truth.contiguous_classes(table).tolist() == [
        toy.CONTIGUOUS[s["category_id"]] for s in segments
    ]
    found, drawn = truth.contiguous_segments(annotation)
    assert (found == ids).all() and found.dtype == np.int32
    assert [(s["id"], s["category_id"], s["iscrowd"]) for s in drawn] == [
        (s["id"], toy.CONTIGUOUS[s["category_id"]], s["iscrowd"]) for s in segments
    ]
    assert [s["isthing"] for s in drawn] == [s["category_id"] in (7, 3) for s in segments]
    assert truth.image_name(annotation) == "1.png"
    assert truth.order == {"a": 0, "b": 1, "c": 2}


def test_the_json_is_read_when_it_is_asked_for(name):
    truth = Truth(name)
    Path(MetadataCatalog.get(name).panoptic_json).write_text("{")
    with pytest.raises(EvaluationError, match=r"truth.json .* is not valid JSON"):
        truth.find("a")


def test_data_sets_without_a_panoptic_truth(name):
    with pytest.raises(DatasetError, match=r"'toy_panoptc'; did you mean 'toy_panoptic'\?"):
        Truth("toy_panoptc")
    MetadataCatalog.get("toy_without_json").set(evaluator_type="coco")
    try:
        with pytest.raises(EvaluationError, match="'toy_without_json' has no 'panoptic_json'"):
            Truth("toy_without_json").find(1)
    finally:
        MetadataCatalog.remove("toy_without_json")
