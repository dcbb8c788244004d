"""tools/evaluate_panoptic.py and the errors of evaluating files."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from panoptic_ext.errors import EvaluationError
from panoptic_ext.evaluation import evaluate_files

from . import toy
from .reference import CATEGORIES, segment, write_dataset

KEYS = ["PQ", "SQ", "RQ", "PQ_th", "SQ_th", "RQ_th", "PQ_st", "SQ_st", "RQ_st"]
TOOL = Path(__file__).parents[2] / "tools" / "evaluate_panoptic.py"


@pytest.fixture
def files(tmp_path):
    """(gt JSON, gt root, pred JSON, pred root); the prediction of "c" is wrong."""
    images = [(i, n, *toy.truth(i)) for i, n in toy.NAMES.items()]
    gt = write_dataset(tmp_path, "gt", images)
    ids = toy.truth("c")[0]
    pred = [*images[:2], ("c", "other/name.png", ids, [segment(501, 90)])]
    return (*gt, *write_dataset(tmp_path, "pred", pred))


def edit(path: str, change) -> None:
    content = json.loads(Path(path).read_text())
    change(content)
    Path(path).write_text(json.dumps(content))


def test_tool(files, tmp_path, capsys):
    gt, gt_root, pred, pred_root = files
    output = tmp_path / "new" / "result.json"
    spec = importlib.util.spec_from_file_location("evaluate_panoptic", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    roots = ["--gt-root", gt_root, "--pred-root", pred_root]
    args = ["--gt", gt, "--pred", pred, *roots, "--output", str(output), "--threads", "2"]
    assert tool.main(args) == 0
    printed = capsys.readouterr()
    assert "| person " in printed.out and "**All** (4)" in printed.out
    assert "3/3" in printed.err  # progress
    content = json.loads(output.read_text())
    assert list(content)[:9] == KEYS
    road = next(c for c in content["per_class"] if c["name"] == "road")
    assert (road["tp"], road["fp"], road["fn"]) == (2, 0, 1)
    assert road["fn_causes"] == {"wrong class": 1}
    assert [i["image_id"] for i in content["per_image"]] == ["a", "b", "c"]
    expected = evaluate_files(*files, num_threads=0).summary["All"]["pq"]
    assert content["PQ"] == 100 * expected


def test_tool_as_a_process_with_bad_input(files):
    Path(files[2]).write_text("{")
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(TOOL), "--gt", files[0], "--pred", files[2]],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and "not valid JSON" in result.stderr
    assert "Traceback" not in result.stderr


def test_threads_change_nothing(files):
    assert evaluate_files(*files, num_threads=0) == evaluate_files(*files, num_threads=3)


GT, PRED = 0, 2


def annotation(content: dict) -> dict:
    return content["annotations"][0]


def first_segment(content: dict) -> dict:
    return annotation(content)["segments_info"][0]


CASES = [
    (PRED, lambda c: c["annotations"].pop(), r"1 images of .*gt.json have no prediction .*'c'"),
    (GT, lambda c: c["annotations"].pop(), r"1 images of .*pred.json have .* no ground truth.*'c'"),
    (GT, lambda c: c["annotations"].clear(), r"gt.json has no annotations"),
    (GT, lambda c: c.pop("annotations"), r"gt.json has no list 'annotations' .*categories"),
    (GT, lambda c: c.pop("categories"), r"gt.json has no 'categories'"),
    (GT, lambda c: c["categories"][0].pop("isthing"), r"has no 'isthing'"),
    (GT, lambda c: c["categories"].append(CATEGORIES[0]), r"category id 7 occurs twice"),
    (GT, lambda c: c["annotations"].append(annotation(c)), r"'a' has two annotations"),
    (PRED, lambda c: c["annotations"].append(annotation(c)), r"'a' has two annotations"),
    (GT, lambda c: annotation(c).update(file_name="../x.png"), r"file_name '../x.png'"),
    (GT, lambda c: annotation(c).update(file_name="/x.png"), r"file_name '/x.png'"),
    (GT, lambda c: annotation(c).update(file_name="x.png"), r"x.png cannot be read: No such file"),
    (GT, lambda c: annotation(c).update(segmentation=[]), r"gt.json is a COCO instances JSON"),
    (GT, lambda c: first_segment(c).pop("area"), r"segment 500 has no 'area'"),
    (GT, lambda c: first_segment(c).update(area=1), r"area of 1, but its PNG"),
    (
        PRED,
        lambda c: first_segment(c).update(category_id=8),
        r"image 'a' in .*pred.json: segment 500 .* unknown category_id 8; expected .* 3, 7, 21, 90",
    ),
    (
        PRED,
        lambda c: annotation(c)["segments_info"].pop(),
        r"image 'a' \(.*pred.north.1.png\): predicted segment ids 7 are in the label map but not",
    ),
    (
        PRED,
        lambda c: c["categories"][0].update(name="people"),
        r"calls category 7 'people', .* 'person'",
    ),
]


@pytest.mark.parametrize(("which", "change", "message"), CASES)
def test_errors_of_files(files, which, change, message):
    edit(files[which], change)
    with pytest.raises(EvaluationError, match=message):
        evaluate_files(*files)


def test_other_errors(files, tmp_path):
    gt, _, pred, pred_root = files
    with pytest.raises(EvaluationError, match=r"missing.json cannot be read: No such file"):
        evaluate_files(str(tmp_path / "missing.json"), None, pred, pred_root)
    with pytest.raises(EvaluationError, match=r"the folder of the label PNGs .* is missing"):
        evaluate_files(gt, str(tmp_path / "nowhere"), pred, pred_root)
    with pytest.raises(EvaluationError, match="gt_area is 'x'; expected one of"):
        evaluate_files(*files, gt_area="x")
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(Path(pred_root) / "north/1.png")
    with pytest.raises(EvaluationError, match=r"pred.north.1.png is a grayscale PNG"):
        evaluate_files(*files)
    Image.fromarray(np.zeros((24, 31, 3), np.uint8)).save(Path(pred_root) / "north/1.png")
    edit(pred, lambda c: c["annotations"][0].update(segments_info=[]))
    with pytest.raises(EvaluationError, match=r"image 'a': the prediction is 24 x 31"):
        evaluate_files(*files)
