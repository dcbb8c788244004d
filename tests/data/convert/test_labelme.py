"""labelme folders: shapes, groups, images inside the JSON, names and sub-folders."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from panoptic_ext.data.convert import ConversionOptions
from panoptic_ext.errors import DatasetError
from tests.data.convert.cases import HEIGHT, WIDTH, converted, picture, write_json


def shape(label: str, points: list, kind: str = "polygon", **more: Any) -> dict[str, Any]:
    return {
        "label": label,
        "points": points,
        "group_id": None,
        "description": "",
        "shape_type": kind,
        "flags": {},
        "mask": None,
        **more,
    }


def corners(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def labelled(path: Path, shapes: list[dict[str, Any]], image: str, **more: Any) -> Path:
    content = {
        "version": "5.4.1",
        "flags": {},
        "shapes": shapes,
        "imagePath": image,
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }
    return write_json(path, {**content, **more})


def png(mask: np.ndarray) -> str:
    with io.BytesIO() as stream:
        Image.fromarray(mask).save(stream, "PNG")
        return base64.b64encode(stream.getvalue()).decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two labelled images in sub-folders, and one that nobody labelled."""
    root = tmp_path / "labelled"
    for name in ("day/Straße 1.jpg", "night/2.png", "night/3.jpg"):
        picture(root / name)
    labelled(
        root / "day" / "Straße 1.json",
        [
            shape("sky", corners(0, 0, WIDTH, 6)),
            shape("car", corners(1, 1, 5, 5)),
            shape("car", corners(3, 1, 8, 5)),
            shape("car", corners(10, 8, 12, 10), group_id=1),
            shape("car", corners(13, 8, 15, 10), group_id=1),
            shape("sky", corners(0, 10, 2, 12)),
            shape("car", [[1, 1], [2, 2]], "line"),
        ],
        "Straße 1.jpg",
    )
    labelled(
        root / "night" / "2.json",
        [
            shape("car", [[1, 1], [4, 3]], "rectangle"),
            shape("lamp", [[8, 6], [8, 9]], "circle"),
            shape("car", [[12, 0], [13, 1]], "mask", mask=png(np.array([[1, 0], [1, 1]], bool))),
        ],
        "..\\night\\2.png",
    )
    return root


def test_shapes_of_all_types(folder: Path, tmp_path: Path) -> None:
    result = converted("auto", folder, tmp_path / "out", things="car,lamp")
    first = result.maps["day/Straße 1.jpg"]
    assert result.rows("day/Straße 1.jpg")[0] == "s" * WIDTH
    # The later car is in front; both parts of the group are one car; the skies are one segment.
    assert first[2].tolist() == ["sky", *["car 1"] * 2, *["car 2"] * 5, *["sky"] * 8]
    assert (first[8:10, 10:12] == "car 3").all() and (first[8:10, 13:15] == "car 3").all()
    assert (first[10:, :2] == "sky").all() and (first == "").any()
    second = result.maps["night/2.png"]
    assert (second[1:3, 1:4] == "car 2").all() and (second == "car 2").sum() == 6
    assert (second == "car 1").sum() == 3 and second[0, 13] == ""
    assert 22 <= (second == "lamp 1").sum() <= 32  # 9 pi
    report = result.converted.report
    assert report.unannotated == ["night/3.jpg"]
    assert report.notes == ["ignored: 1 shapes of the type line, which have no area"]
    assert report.counts["car"].hidden == 8
    assert len(result.content["images"]) == 2


def test_an_image_that_only_the_json_has(tmp_path: Path) -> None:
    photo = picture(tmp_path / "photo.png").read_bytes()
    path = labelled(
        tmp_path / "labelled" / "a.json",
        [shape("car", corners(0, 0, 2, 2))],
        "C:\\photos\\a.PNG",
        imageData=base64.b64encode(photo).decode(),
    )
    result = converted("labelme", path, tmp_path / "out", things="car")
    assert (tmp_path / "out" / "images" / "a.png").read_bytes() == photo
    assert (result.maps["a.png"] == "car 1").sum() == 4
    with pytest.raises(DatasetError, match=r"inside its annotation file .*--images link"):
        converted("labelme", path, tmp_path / "o", things="car", placement="reference")


@pytest.mark.parametrize("turn", [6, 3])
def test_labels_are_of_the_turned_image(tmp_path: Path, turn: int) -> None:
    """labelme shows and measures images turned by their tag."""
    picture(tmp_path / "in" / "a.jpg", (HEIGHT, WIDTH), turn=turn)
    height, width = (WIDTH, HEIGHT) if turn == 6 else (HEIGHT, WIDTH)
    size = {"imageHeight": height, "imageWidth": width}
    labelled(tmp_path / "in" / "a.json", [shape("car", corners(0, 0, 2, 1))], "a.jpg", **size)
    result = converted("auto", tmp_path / "in", tmp_path / "out", things="all")
    assert result.maps["a.jpg"].shape == (height, width)
    assert (result.maps["a.jpg"][0, :2] == "car 1").all()


def test_sizes_that_are_missing_are_the_images(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.jpg")
    labelled(tmp_path / "in" / "a.json", [], "a.jpg", imageHeight=None, imageWidth=None)
    with pytest.raises(DatasetError, match="no class is left to convert; found none"):
        converted("auto", tmp_path / "in", tmp_path / "out", things="all")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (shape("car", [[1, 1], [2, "x"], [3, 3]]), r"shape 0 \(car\) has the points"),
        (shape("car", [[1, 1]], "rectangle"), "has 1 points, a rectangle has 2"),
        (shape("car", corners(0, 0, 1, 1), "blob"), "shape_type 'blob'"),
        (shape("car", [[1, 1], [2, 2]], "mask", mask="???"), "no PNG in base64"),
        (shape("", corners(0, 0, 1, 1)), "has the label ''"),
        ("car", "shape 0 is 'car', expected an object"),
    ],
)
def test_faults_name_file_and_shape(tmp_path: Path, content: Any, words: str) -> None:
    picture(tmp_path / "in" / "a.jpg")
    labelled(tmp_path / "in" / "a.json", [content], "a.jpg")
    with pytest.raises(DatasetError, match=words):
        converted("labelme", tmp_path / "in", tmp_path / "out", things="all")


def test_a_damaged_file_among_others_is_reported(folder: Path, tmp_path: Path) -> None:
    (folder / "night" / "3.json").write_text('{"shapes": [')
    report = converted("labelme", folder, tmp_path / "out", things="car").converted.report
    assert list(report.failed) == ["night/3.jpg"]
    assert "not valid JSON" in report.failed["night/3.jpg"]
    assert report.images == 2


def test_which_are_things_must_be_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="3 found: car, lamp, sky; name the things"):
        converted("labelme", folder, tmp_path / "out")
    assert ConversionOptions().placement == "link"
