"""PanopticEvaluator: predictions and truths that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog

from panoptic_ext.errors import EvaluationError
from panoptic_ext.evaluation import PanopticEvaluator

from . import toy


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
            toy.run(evaluator, name, toy.change(toy.perfect(), "b", **values))
    with pytest.raises(
        EvaluationError, match=r"image 'b'.* has no 'panoptic_seg' \(found: \['x'\]"
    ):
        toy.run(evaluator, name, {**toy.perfect(), "b": {"x": 1}})


def test_missing_and_extra_predictions(name):
    evaluator = PanopticEvaluator(name)
    outputs = toy.perfect()
    del outputs["b"]
    with pytest.raises(EvaluationError, match=r"1 of 3 images of .*: image ids 'b'"):
        toy.run(evaluator, name, outputs)
    with pytest.raises(EvaluationError, match=r"prediction for image 'z' .* not in"):
        evaluator.process([{"image_id": "z", "file_name": "z.jpg"}], [toy.perfect()["a"]])


def test_wrong_area_in_the_truth(name):
    path = Path(MetadataCatalog.get(name).panoptic_json)
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"][4]["area"] = 8000
    path.write_text(json.dumps(content))
    with pytest.raises(EvaluationError, match=r"image 'a' \(.*north.1.png\).* area of 8000.* 80 "):
        toy.run(PanopticEvaluator(name), name, toy.perfect())
    for gt_area, low, high in (("pixels", 100, 100), ("json", 1, 99)):
        results = toy.run(PanopticEvaluator(name, gt_area=gt_area), name, toy.perfect())
        assert low <= results["panoptic_seg"]["PQ"] <= high


def test_truth_that_cannot_be_read(name):
    root = Path(MetadataCatalog.get(name).panoptic_root)
    content = (root / "south/1.png").read_bytes()
    (root / "south/1.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(EvaluationError, match=r"south.1.png is damaged"):
        toy.run(PanopticEvaluator(name), name, toy.perfect())
    (root / "south/1.png").write_text("<html>")
    with pytest.raises(EvaluationError, match=r"south.1.png is not an image"):
        toy.run(PanopticEvaluator(name), name, toy.perfect())


def test_unwritable_output(name, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match="cannot make"):
        PanopticEvaluator(name, str(tmp_path / "file" / "out"))
    with pytest.raises(EvaluationError, match="needs an output_dir"):
        PanopticEvaluator(name, write_predictions=True)
