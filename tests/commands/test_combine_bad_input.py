"""What combine refuses: predictions, label PNGs, files and options that do not fit."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from panoptic_ext.commands import combine
from tests.tiny.combine_case import ROAD_ID, Case, rle
from tests.tiny.panoptic_dataset import HEIGHT, WIDTH


def set_first(rows: str, **values):
    return lambda case: getattr(case, rows)[0].update(values)


SMALL = rle(np.ones((HEIGHT, WIDTH - 1)))


ERRORS = [
    (set_first("instances", image_id=9), r"predictions for 1 image ids that .* does not have: 9;"),
    (set_first("instances", image_id=None), "entry 0: image_id None"),
    (set_first("instances", category_id=ROAD_ID), r"not ids of things .*: 3, 11; 7 are stuff"),
    (set_first("instances", category_id=4), "category_id 4 are not ids of things"),
    (set_first("instances", category_id=True), "entry 0: category_id True"),
    (set_first("instances", score=float("nan")), "entry 0: score nan; expected a finite"),
    (set_first("instances", score="0.9"), "score '0.9'"),
    (set_first("instances", segmentation=SMALL), r"a mask of size \[24, 31\]; expected \[24, 32\]"),
    (set_first("instances", segmentation=[[1, 2, 3]]), "the segmentation is polygons"),
    (lambda case: case.instances[0].pop("segmentation"), "a model without masks"),
    (lambda case: case.instances.insert(0, 5), "entry 0 has 5; expected objects with image_id"),
    (set_first("semantic", file_name="9.jpg"), "'9.jpg' is no image of"),
    (set_first("semantic", file_name="x/1.jpg"), "is image 1 a second time"),
    (set_first("semantic", category_id=4), "labels 4 are no dataset ids"),
    (set_first("semantic", segmentation=None), "category 7 of image 1: the segmentation is None"),
    (lambda case: case.semantic[0].pop("category_id"), "expected objects with file_name"),
]


@pytest.mark.parametrize(("change", "message"), ERRORS)
def test_bad_predictions_are_refused(case: Case, capsys, change, message) -> None:
    change(case)
    assert combine.main(case.save()) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert re.search(message, error), error


def test_every_image_that_fails_is_named(case: Case, capsys) -> None:
    arguments = case.save_labels()
    for name in ("1.png", "2.png"):
        (case.folder / name).write_bytes(b"no picture")
    assert combine.main(arguments) == 2
    error = capsys.readouterr().err
    assert "error: 2 of 2 images cannot be combined:\n  image 1: " in error
    assert "\n  image 2: " in error and "2.png is not an image" in error
    assert not (case.root / "out" / "panoptic_predictions.json").exists()


def test_results_are_not_written_over_inputs(case: Case, capsys) -> None:
    arguments = case.save_labels()
    assert combine.main([*arguments, "--output", str(case.folder)]) == 2
    assert f"over the input {case.folder}; choose another folder" in capsys.readouterr().err
    truth = case.data.json.rename(case.root / "panoptic_predictions.json")
    same = [*arguments, "--json", str(truth), "--output", str(case.root)]
    assert combine.main(same) == 2 and truth.is_file()


def test_bad_label_pngs_are_refused(case: Case, capsys) -> None:
    def fails(message: str, *options: str) -> None:
        assert combine.main([*arguments, *options]) == 2
        assert message in capsys.readouterr().err

    case.label_maps[0][0, 0] = 42
    arguments = case.save_labels()
    fails("labels 42 are no dataset ids")
    fails("read them as dataset ids (--semantic-ids)", "--semantic-ids", "contiguous")
    case.label_maps[0][0, 0] = 0
    arguments = case.save_labels()
    (case.folder / "sub").mkdir()
    Image.fromarray(case.label_maps[0]).save(case.folder / "sub" / "1.png")
    fails("has two PNGs of image 1")
    (case.folder / "sub" / "1.png").unlink()
    Image.new("L", (3, 5)).save(case.folder / "1.png")
    fails("is 5 x 3 (height x width), image 1 is 24 x 32")
    Image.new("RGB", (WIDTH, HEIGHT)).save(case.folder / "1.png")
    fails("is a RGB PNG, expected a grey one of 8 or 16 bits or a palette, one class id a pixel")
    (case.folder / "1.png").write_bytes(b"no picture")
    fails("1.png is not an image")
    (case.folder / "1.png").rename(case.folder / "other.png")
    fails("1 of 2 images")
    (case.folder / "2.png").unlink()
    fails("has no PNG named like an image")


def test_bad_files_and_options_are_refused(case: Case, capsys) -> None:
    arguments = case.save()

    def fails(message: str, *options: str) -> None:
        assert combine.main([*arguments, *options]) == 2
        assert message in capsys.readouterr().err

    fails("instance results", "--instances", "nowhere.json")
    broken = case.root / "broken.json"
    broken.write_text("[{")
    fails("is not valid JSON", "--semantic", str(broken))
    broken.write_text("[]")
    for nothing in (str(broken), "nowhere.json"):
        fails("evaluate again with TEST.WRITE_PREDICTIONS True", "--semantic", nothing)
    fails("hold a dict; expected a list of predictions", "--instances", str(case.data.json))
    fails("--json names the data set alone", "--dataset", "coco_panoptic_val")
    (case.root / "out").write_text("a file in the way")
    fails("cannot write to")
    fails("panoptic JSON nowhere.json does not exist", "--json", "nowhere.json")
    with pytest.raises(SystemExit):
        combine.main([*arguments, "--score-threshold", "2"])
    without = arguments[2:]
    assert combine.main(without) == 2
    assert "expected one data set, found none" in capsys.readouterr().err


def test_bad_lists_of_images_are_refused(case: Case, capsys) -> None:
    arguments = case.save()
    info = case.data.info

    def fails(message: str, **changes: object) -> None:
        case.data.json.write_text(json.dumps({**info, **changes}))
        assert combine.main(arguments) == 2
        assert message in capsys.readouterr().err

    first, second = info["images"]
    fails("has no images", images=[])
    fails("two images have the same id", images=[first, {**second, "id": 1}])
    fails("in images; expected an id", images=[{**first, "height": 0}, second])
    fails("in images; expected an id", images=[{**first, "file_name": "../x.png"}, second])
    fails("images that are not in its images: 2", images=[first])
    png = {**info["annotations"][1], "file_name": "1.png"}
    fails("two images have the same label PNG", annotations=[info["annotations"][0], png])
    fails("expected a panoptic one", annotations=[{"image_id": 1, "segmentation": []}])
