"""The command evaluate and the errors of evaluating files."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from panoptic_ext.commands import evaluate
from panoptic_ext.errors import EvaluationError
from panoptic_ext.evaluation import evaluate_files
from tests import ROOT
from tests.evaluation.reference import CATEGORIES, segment, write_dataset
from tests.tiny import predictions as toy
from tests.tiny.programs import run_script

KEYS = ["PQ", "SQ", "RQ", "PQ_th", "SQ_th", "RQ_th", "PQ_st", "SQ_st", "RQ_st"]
TOOL = ROOT / "tools" / "evaluate_panoptic.py"


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
    roots = ["--gt-root", gt_root, "--pred-root", pred_root]
    args = ["--gt", gt, "--pred", pred, *roots, "--output", str(output), "--threads", "2"]
    args += ["--segments", str(tmp_path / "segments.csv")]
    assert evaluate.main(args) == 0
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
    assert sum(content["costs"]["All"].values()) == pytest.approx(100 - content["PQ"])
    assert "| points of PQ" in printed.out
    costliest = max(content["per_image"], key=lambda row: row["loss"])
    assert costliest["image_id"] == "c"
    assert f"in points of PQ: south/2.png {costliest['loss']:.3f}" in printed.out
    lines = (tmp_path / "segments.csv").read_text().splitlines()
    assert lines[0] == "image_id,file_name,kind,cause,cost,class,other_class,iou,id,area"
    wrong = next(line for line in lines if line.startswith("c,") and ",FN," in line)
    assert "south/2.png,FN,wrong class," in wrong and ",road,sky,0.0,501,768" in wrong


def test_a_subset_is_compared_where_that_is_wanted(files, tmp_path, capsys):
    names = ("gt", "gt-root", "pred", "pred-root")
    arguments = [f"--{k}={v}" for k, v in zip(names, files, strict=True)]
    edit(files[PRED], lambda content: content["annotations"].pop())  # "c", the wrong one
    edit(files[GT], lambda content: content["annotations"].pop(0))
    assert evaluate.main(arguments) == 2
    assert "compare those in both (--only-common)" in capsys.readouterr().err
    assert evaluate.main([*arguments, "--only-common"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(
        "1 images are in both files; left out are 1 without a prediction and 1 without ground truth"
    )
    result = evaluate_files(*files, only_common=True)
    assert [row["image_id"] for row in result.per_image] == ["b"]
    assert result.summary["All"]["pq"] == 1.0
    edit(files[PRED], lambda content: content["annotations"].pop())
    with pytest.raises(EvaluationError, match="have no prediction") as error:
        evaluate_files(*files, only_common=True)
    assert "--only-common" not in str(error.value)


def rename(content, ids):
    """Give images other ids."""
    for image in content["images"]:
        image["id"] = ids[image["id"]]
    for annotation in content["annotations"]:
        annotation["image_id"] = ids[annotation["image_id"]]


def test_images_without_a_common_id_are_joined_by_their_file_names(files, caplog):
    """As predict writes names for images that are in no data set that it knows."""
    expected = evaluate_files(*files).summary["All"]
    edit(files[GT], lambda content: rename(content, {"a": 7, "b": 8, "c": 9}))
    for path in (files[GT], files[PRED]):
        names = {"7": "x/a.jpg", "8": "b.jpg", "9": "c.jpg", "a": "a.png", "b": "b.png", "c": "c"}
        edit(
            path,
            lambda content, names=names: [
                image.update(file_name=names[str(image["id"])]) for image in content["images"]
            ],
        )
    with caplog.at_level(logging.WARNING, "panoptic_ext.evaluation.compare_files"):
        assert evaluate_files(*files).summary["All"] == expected
    assert "joined by the names of their files, such as 7 with 'a'" in caplog.text
    edit(files[PRED], lambda content: content["annotations"].pop())
    with pytest.raises(EvaluationError, match=r"1 images .* have no prediction .* image ids 9;"):
        evaluate_files(*files)
    edit(files[GT], lambda content: content["images"][1].update(file_name="other/a.jpg"))
    with pytest.raises(EvaluationError, match="No id and no file name"):  # two may be "a"
        evaluate_files(*files, only_common=True)
    edit(files[PRED], lambda content: [i.update(file_name="other") for i in content["images"]])
    with pytest.raises(EvaluationError, match=r"No id and no file name is in both.*image id 'a'"):
        evaluate_files(*files, only_common=True)


def test_tool_as_a_process_with_bad_input(files):
    Path(files[2]).write_text("{")
    result = run_script(str(TOOL), "--gt", files[0], "--pred", files[2])
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
    (GT, lambda c: c["annotations"].clear(), r"gt.json: annotations is empty"),
    (GT, lambda c: c.pop("annotations"), r"gt.json: no list 'annotations' .*categories"),
    (GT, lambda c: c.pop("categories"), r"gt.json: no list 'categories'"),
    (GT, lambda c: c["categories"][0].pop("isthing"), r"gt.json, category .* no 'isthing'"),
    (GT, lambda c: c["categories"].append(CATEGORIES[0]), r"categories: id '7' occurs 2 times"),
    (GT, lambda c: c["annotations"].append(annotation(c)), r"image_id 'a' occurs 2 times"),
    (PRED, lambda c: c["annotations"].append(annotation(c)), r"image_id 'a' occurs 2 times"),
    (GT, lambda c: annotation(c).update(file_name="../x.png"), r"file_name '../x.png'"),
    (GT, lambda c: annotation(c).update(file_name="/x.png"), r"file_name '/x.png'"),
    (
        GT,
        lambda c: annotation(c).update(file_name="x.png"),
        r"x.png does not exist; check the PNG root",
    ),
    (GT, lambda c: c.update(annotations=[{"segmentation": []}]), r"gt.json: an instances JSON"),
    (
        GT,
        lambda c: first_segment(c).pop("area"),
        r"gt.json, image id 'a', segment id 500: no 'area'",
    ),
    (GT, lambda c: first_segment(c).update(area=1), r"area of 1, but its PNG"),
    (
        PRED,
        lambda c: first_segment(c).update(category_id=8),
        r"pred.json, image id 'a', segment id 500: category_id 8 is not in .*\[21, 3, 7, 90\]",
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


NAN, INF = float("nan"), float("inf")
MALFORMED = [
    (("annotations", 0), [5, None, [], "x"], r"annotation .*no 'image_id'"),
    (("annotations", 0, "image_id"), [[1], {}, NAN, None], r"no 'image_id'"),
    (("annotations", 0, "file_name"), [5, None, "a\0b", "c:/x"], r"file_name .*relative path"),
    (("annotations", 0, "segments_info"), [{}, {"id": 1}, 5], r"segments_info is .*a list"),
    (("annotations", 0, "segments_info", 0), [5, None, [1]], r"segment .* expected an object"),
    (
        ("annotations", 0, "segments_info", 0, "id"),
        [[1], NAN, INF, "1", None, True, 2**70],
        r"segment id .* expected an integer id from 1 to 16777215",
    ),
    (
        ("annotations", 0, "segments_info", 0, "category_id"),
        [[90], {}, NAN, "90", None, True],
        r"category_id .* is not in categories",
    ),
]
MALFORMED_TRUTH = [
    (("categories", 0), [5, None, [1]], r"category .* no integer 'id'"),
    (("categories", 0, "id"), [[7], {}, NAN, 2**70, "7"], r"category .* no integer 'id'"),
    (("categories", 0, "isthing"), [[1], 2, "1"], r"expected isthing 0 or 1"),
    (("categories",), [5, "x", {}], r"no list 'categories'"),
    (
        ("annotations", 0, "segments_info", 0, "area"),
        ["abc", None, INF, NAN, -1, [1], 10**400],
        r"area is .*, expected the number of pixels",
    ),
    (("annotations", 0, "segments_info", 0, "iscrowd"), ["0", 2, None], r"iscrowd is .* 0 or 1"),
]


def put(content: dict, path: tuple, value: object) -> None:
    for key in path[:-1]:
        content = content[key]
    content[path[-1]] = value


@pytest.mark.parametrize(
    ("which", "path", "value", "message"),
    [(w, p, v, m) for w in (GT, PRED) for p, values, m in MALFORMED for v in values]
    + [(GT, p, v, m) for p, values, m in MALFORMED_TRUTH for v in values],
)
def test_malformed_files(files, which, path, value, message):
    edit(files[which], lambda content: put(content, path, value))
    with pytest.raises(EvaluationError, match=message):
        evaluate_files(*files, num_threads=0)


@pytest.mark.parametrize("value", [5, "x", {"id": 1}, [5], [{"id": [7]}], [{"name": "person"}]])
def test_malformed_categories_of_predictions(files, value):
    edit(files[PRED], lambda content: content.update(categories=value))
    with pytest.raises(EvaluationError, match=r"pred.json has .* in categories; expected a list"):
        evaluate_files(*files, num_threads=0)


def test_predictions_need_no_more_than_ids(files):
    expected = evaluate_files(*files)

    def strip(content: dict) -> None:
        del content["categories"], content["images"]
        for found in content["annotations"]:
            for number, row in enumerate(found["segments_info"]):
                del row["area"], row["iscrowd"]
                row.update([{}, {"area": "x"}, {"area": NAN, "iscrowd": None}][number % 3])

    edit(files[PRED], strip)
    assert evaluate_files(*files) == expected


@pytest.mark.parametrize(("which", "change", "message"), CASES)
def test_errors_of_files(files, which, change, message):
    edit(files[which], change)
    with pytest.raises(EvaluationError, match=message):
        evaluate_files(*files)


def test_other_errors(files, tmp_path):
    gt, _, pred, pred_root = files
    with pytest.raises(EvaluationError, match=r"missing.json does not exist"):
        evaluate_files(str(tmp_path / "missing.json"), None, pred, pred_root)
    with pytest.raises(EvaluationError, match=r"the folder of the label PNGs .* is missing"):
        evaluate_files(gt, str(tmp_path / "nowhere"), pred, pred_root)
    with pytest.raises(EvaluationError, match="unknown gt_area 'x'; known: "):
        evaluate_files(*files, gt_area="x")
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(Path(pred_root) / "north/1.png")
    with pytest.raises(EvaluationError, match=r"pred.north.1.png is a grayscale PNG"):
        evaluate_files(*files)
    Image.fromarray(np.zeros((24, 31, 3), np.uint8)).save(Path(pred_root) / "north/1.png")
    edit(pred, lambda c: c["annotations"][0].update(segments_info=[]))
    with pytest.raises(EvaluationError, match=r"image 'a': the prediction is 24 x 31"):
        evaluate_files(*files)
