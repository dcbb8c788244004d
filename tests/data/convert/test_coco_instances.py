"""COCO instances: polygons, run lengths, crowds, string ids, semantic PNGs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from panoptic_ext.data.convert import ClassChoice, SourceInputs, open_source
from panoptic_ext.data.convert.labels import SourceClass
from panoptic_ext.errors import DatasetError
from tests.data.convert.cases import HEIGHT, WIDTH, box, converted, picture, write_json

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car", "supercategory": "vehicle"}]
SIZE = {"height": HEIGHT, "width": WIDTH}


def annotation(number: int, image_id: Any, category: int, segmentation: Any, **more: Any) -> dict:
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category,
        "segmentation": segmentation,
        "bbox": [0, 0, 5, 5],
        "area": 25.0,
        "iscrowd": 0,
        **more,
    }


@pytest.fixture
def dataset(tmp_path: Path) -> dict[str, Any]:
    """Three images, of which the last has no label; the dog lies on the car."""
    names = ["a b/é 1.jpg", "2.jpg", "empty.jpg"]
    for name in names:
        picture(tmp_path / "images" / name)
    crowd = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT, HEIGHT * (WIDTH - 1)]}
    return {
        "info": {},
        "licenses": [],
        "images": [
            {"id": i, "file_name": name, **SIZE}
            for i, name in zip(("one", "two", "3"), names, strict=True)
        ],
        "annotations": [
            annotation(1, "one", 18, [box(2, 2, 4, 4)]),
            annotation(2, "one", 3, [box(1, 1, 8, 6), box(10, 8, 12, 10)]),
            annotation(3, "two", 3, crowd, iscrowd=1),
            annotation(4, "two", 3, box(0, 0, 2, 2)),
        ],
        "categories": CATEGORIES,
    }


def test_the_smaller_is_in_front_and_disjoint_parts_are_one(
    tmp_path: Path, dataset: dict[str, Any]
) -> None:
    path = write_json(tmp_path / "annotations" / "instances.json", dataset)
    result = converted("auto", path, tmp_path / "out")
    first = result.maps["a b/é 1.jpg"]
    assert (first == "dog 1").sum() == 4 and (first == "car 1").sum() == 35 - 4 + 4
    assert (first == "").sum() == HEIGHT * WIDTH - 39
    second = result.maps["2.jpg"]
    assert (second == "car 1").sum() == 4 and (second == "car 2 crowd").sum() == HEIGHT - 2
    assert not (result.maps["empty.jpg"] != "").any()
    assert [(c["id"], c["name"], c["isthing"]) for c in result.content["categories"]] == [
        (18, "dog", 1),
        (3, "car", 1),
    ]
    assert [image["id"] for image in result.content["images"]] == ["one", "two", "3"]
    report = result.converted.report
    assert report.without_labels == ["empty.jpg"] and report.counts["car"].hidden == 4 + 2
    assert (tmp_path / "out" / "images" / "a b" / "é 1.jpg").stat().st_nlink == 2


def test_masks_that_are_boxes_alone_are_counted(tmp_path: Path, dataset: dict[str, Any]) -> None:
    dataset["annotations"][0]["segmentation"] = []
    path = write_json(tmp_path / "instances.json", dataset)
    report = converted("coco-instances", path, tmp_path / "out").converted.report
    assert report.notes == ["ignored: 1 annotations without a mask (boxes or points alone)"]


def test_semantic_pngs_lie_behind_the_objects(tmp_path: Path, dataset: dict[str, Any]) -> None:
    semantic = np.zeros((HEIGHT, WIDTH), np.uint8)
    semantic[:, 1:8] = 40
    semantic[0, :] = 3  # cars that no object covers
    semantic[-1] = 255
    for name in ("a b/é 1.png", "2.png", "empty.png"):
        file = tmp_path / "stuff" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(semantic).save(file)
    path = write_json(tmp_path / "instances.json", dataset)
    inputs = {
        "semantic": str(tmp_path / "stuff"),
        "void_values": frozenset({0, 255}),
        "names": {3: "car", 40: "grass"},
    }
    choice = ClassChoice(stuff=("grass",))
    result = converted("auto", path, tmp_path / "out", inputs=inputs, choice=choice)
    last = result.maps["empty.jpg"]
    assert (last[0] == "car 1 crowd").all() and (last[-1] == "").all()
    assert (last[1:-1, 1:8] == "grass").all() and (last[1:-1, 8:] == "").all()
    assert result.maps["a b/é 1.jpg"][2, 2] == "dog 1"
    assert ("grass", 40) in [(c["name"], c["id"]) for c in result.content["categories"]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_id": "four"}, "image id 'four', which is not in images"),
        ({"category_id": 4}, "category_id 4, which is not in categories"),
        ({"segmentation": {"size": [1, 1], "counts": [1]}}, r"id 1 \(dog\): .* of size \[1, 1\]"),
        ({"segmentation": "?"}, "expected a list of polygons or run lengths"),
        ({"segmentation": [[1, 2, "x", 4, 5, 6]]}, "even number of coordinates"),
    ],
)
def test_faults_name_the_annotation(
    tmp_path: Path, dataset: dict[str, Any], change: dict[str, Any], words: str
) -> None:
    dataset["images"] = dataset["images"][:1]
    dataset["annotations"] = [{**dataset["annotations"][0], **change}]
    path = write_json(tmp_path / "instances.json", dataset)
    with pytest.raises(DatasetError, match=words):
        converted("coco-instances", path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("images", [], "has no images"),
        ("images", [{"id": 1, "file_name": "../a.jpg", **SIZE}], "without '..'"),
        (
            "images",
            [{"id": 1, "file_name": "a.jpg", "height": 0, "width": 4}],
            "its size in pixels",
        ),
        ("images", [{"id": 1, "file_name": "a.jpg", **SIZE}] * 2, "two images have the id 1"),
        ("categories", [], "has no categories"),
        ("categories", [{"name": "car"}], "has no id"),
        ("annotations", None, "has no annotations"),
    ],
)
def test_faults_of_the_json(
    tmp_path: Path, dataset: dict[str, Any], key: str, value: Any, words: str
) -> None:
    path = write_json(tmp_path / "instances.json", {**dataset, key: value})
    with pytest.raises(DatasetError, match=words):
        open_source("coco-instances", SourceInputs(str(path)))


def test_a_wrong_image_root_is_one_error(tmp_path: Path, dataset: dict[str, Any]) -> None:
    path = write_json(tmp_path / "instances.json", dataset)
    (tmp_path / "other").mkdir()
    with pytest.raises(DatasetError, match=r"has none of the 3 images of .*--image-root"):
        converted("auto", path, tmp_path / "out", inputs={"image_root": str(tmp_path / "other")})


def test_classes_of_a_file_give_ids_and_kinds(tmp_path: Path, dataset: dict[str, Any]) -> None:
    path = write_json(tmp_path / "instances.json", dataset)
    listed = (SourceClass("car", 1, True), SourceClass("dog", 2, False))
    result = converted("auto", path, tmp_path / "out", choice=ClassChoice(listed=listed))
    assert [(c["id"], c["isthing"]) for c in result.content["categories"]] == [(1, 1), (2, 0)]
    assert result.maps["a b/é 1.jpg"][2, 2] == "car 1"  # the dog is stuff now, behind the car


def test_a_file_of_classes_numbers_the_semantic_pngs(
    tmp_path: Path, dataset: dict[str, Any]
) -> None:
    """The JSON's ids count otherwise: 3 is its car, and the file's sky."""
    semantic = np.full((HEIGHT, WIDTH), 3, np.uint8)
    semantic[1:6, 1:8] = 2  # what the objects of the first image hide
    for name in ("a b/é 1.png", "2.png", "empty.png"):
        file = tmp_path / "stuff" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(semantic).save(file)
    path = write_json(tmp_path / "instances.json", dataset)
    listed = (
        SourceClass("dog", 1, True), SourceClass("car", 2, True), SourceClass("sky", 3, False)
    )  # fmt: skip
    inputs = {"semantic": str(tmp_path / "stuff"), "names": {c.id: c.name for c in listed}}
    choice = ClassChoice(listed=listed)
    result = converted("auto", path, tmp_path / "out", inputs=inputs, choice=choice)
    first = result.maps["a b/é 1.jpg"]
    assert (first[7] == "sky").all() and not any("crowd" in text for text in first.flat)
    # The region of cars behind the car is no object of its own that could vanish.
    report = result.converted.report
    assert report.vanished == {} and report.counts["car"].hidden == 4 + 2
    assert (result.maps["empty.jpg"][1:6, 1:8] == "car 1 crowd").all()
