"""PanopticEvaluator: predictions and truths that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog

from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.engine.dry_run import _evaluate_one_image
from panoptic_ext.errors import EvaluationError
from panoptic_ext.evaluation import PanopticEvaluator, build_evaluator
from tests.tiny import predictions as toy


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
    with_wrong_area(name)
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


def with_wrong_area(name: str, area: int = 8000) -> str:
    """Give the car of image "a" a wrong area in the truth's JSON."""
    path = Path(MetadataCatalog.get(name).panoptic_json)
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"][4]["area"] = area
    path.write_text(json.dumps(content))
    return name


def test_wait_raises_the_errors_of_the_threads(name):
    evaluator = PanopticEvaluator(with_wrong_area(name))
    with pytest.raises(EvaluationError, match=r"image 'a' .* area of 8000"):
        evaluator.process(toy.inputs(name)[:1], [toy.perfect()["a"]])  # raises if they are quick
        evaluator.wait()
    evaluator.reset()
    evaluator.process(toy.inputs(name)[1:], [toy.perfect()["b"], toy.perfect()["c"]])
    evaluator.wait()


def test_dry_run_finds_wrong_areas(name, tmp_path):
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.DATASETS.TEST = (name,)
    cfg.TEST.EVALUATORS = ["panoptic"]
    model = torch.nn.Module()
    model.forward = lambda batch: [toy.perfect()[batch[0]["image_id"]]]
    trainer = SimpleNamespace(
        build_evaluator=lambda cfg, name: build_evaluator(cfg, name, str(tmp_path / "out")),
        build_test_loader=lambda cfg, name: [toy.inputs(name)[:1]],
        model=model,
    )
    assert _evaluate_one_image(cfg, trainer) >= 0
    with_wrong_area(name)
    with pytest.raises(EvaluationError, match=r"image 'a' .* area of 8000"):
        _evaluate_one_image(cfg, trainer)


def test_true_areas_that_leave_no_union(name):
    with_wrong_area(name, 0)
    with pytest.raises(EvaluationError, match=r"image 'a': .* segment 7 an area of 0, less than"):
        toy.run(PanopticEvaluator(name, gt_area="json"), name, toy.perfect())
    results = toy.run(PanopticEvaluator(name, gt_area="pixels"), name, toy.perfect())
    assert results["panoptic_seg"]["PQ"] == 100.0


BAD_SEGMENTS = [
    ({"category_id": 0, "isthing": True}, r"a segment has id None; expected an integer"),
    ({"id": 7, "isthing": True}, r"a segment has category_id None; expected an integer"),
    (
        {"id": 7, "category_id": "car", "isthing": True},
        r"a segment has category_id 'car'; expected an",
    ),
    ({"id": 7, "category_id": "car"}, r"a segment has category_id 'car'; expected an integer"),
    (
        {"id": float("nan"), "category_id": 0, "isthing": True},
        r"a segment has id nan; expected an integer",
    ),
    (
        {"id": [7], "category_id": 0, "isthing": True},
        r"a segment has id \[7\]; expected an",
    ),
    ({"id": 7, "category_id": [0]}, r"a segment has category_id \[0\]; expected an integer"),
    ({"id": 2**70, "category_id": 0}, r"segment id 1180591620717411303424 .* id < 2\^24"),
    (7, r"segments_info has the entry 7; expected an object"),
]


@pytest.mark.parametrize(("segment", "message"), BAD_SEGMENTS)
def test_bad_segments_info_names_the_image(name, segment, message):
    info = toy.perfect()["b"]["panoptic_seg"][1]
    outputs = toy.change(toy.perfect(), "b", info=[*info[1:], segment])
    with pytest.raises(EvaluationError, match=r"prediction for image 'b': " + message):
        toy.run(PanopticEvaluator(name), name, outputs)


@pytest.mark.parametrize("output", [5, (torch.zeros(2, 2),), (torch.zeros(2, 2).int(), 5)])
def test_bad_panoptic_seg_names_the_image(name, output):
    with pytest.raises(EvaluationError, match=r"image 'b': .* expected .*segments_info"):
        toy.run(PanopticEvaluator(name), name, {**toy.perfect(), "b": {"panoptic_seg": output}})
