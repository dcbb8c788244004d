"""Formats that are written: exact round trips, and what they say that they lose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from panoptic_ext.data.coco.categories import Category
from panoptic_ext.data.coco.id_map import id_to_rgb
from panoptic_ext.data.coco.label_png import read_id_map
from panoptic_ext.data.convert import ConversionOptions, SourceInputs, convert, open_source
from panoptic_ext.data.convert.class_file import read_class_file
from panoptic_ext.data.convert.classes import ClassChoice
from panoptic_ext.data.convert.masks import Polygons
from panoptic_ext.data.convert.report import Report
from panoptic_ext.data.convert.resolve import Group
from panoptic_ext.data.convert.targets.label_pngs import TwoChannelPngsTarget
from panoptic_ext.data.convert.targets.target import WrittenImage
from panoptic_ext.data.convert.targets.yolo import outline_of
from panoptic_ext.data.datasets.shapes import ShapesParams, ensure_shapes
from panoptic_ext.errors import DatasetError
from tests.data.convert.cases import converted, picture, read_result, write_json


def write(path: Path, output: Path, target: str, **options: Any) -> Report:
    source = open_source("coco-panoptic", SourceInputs(str(path)))
    return convert(source, str(output), ConversionOptions(target=target, **options)).report


def back(target: str, folder: Path, output: Path) -> dict[str, np.ndarray]:
    """Read what was written; the maps."""
    if target == "coco-instances":
        return converted("auto", folder / "instances.json", output).maps
    classes = read_class_file(str(folder / "classes.json"))
    names = {c.id: c.name for c in classes}
    inputs = {"names": names, "image_root": str(folder / "images")}
    choice = ClassChoice(listed=classes)
    return converted("two-channel", folder / "labels", output, inputs=inputs, choice=choice).maps


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated images with crowds and void, as a data set of the converter."""
    cache = tmp_path_factory.mktemp("cache")
    folder = Path(ensure_shapes(ShapesParams(num_val=8, cache=str(cache)), "val"))
    inputs = {"png_root": str(folder / "panoptic"), "image_root": str(folder / "images")}
    converted("auto", folder / "panoptic_val.json", cache / "shapes", inputs=inputs)
    return cache / "shapes"


@pytest.mark.parametrize("target", ["coco-instances", "two-channel"])
def test_round_trip_of_generated_data(shapes: Path, tmp_path: Path, target: str) -> None:
    report = write(shapes, tmp_path / "a", target, with_stuff=True)
    assert report.notes == []
    content, before = read_result(shapes)
    assert any(s["iscrowd"] for a in content["annotations"] for s in a["segments_info"])
    after = back(target, tmp_path / "a", tmp_path / "b")
    assert set(after) == set(before)
    assert all(np.array_equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("dataset", ["facade", "nuclei"])
@pytest.mark.parametrize("target", ["coco-instances", "two-channel"])
def test_round_trip_of_real_data(
    shared_data: Path, tmp_path: Path, dataset: str, target: str
) -> None:
    root = shared_data / dataset
    content = json.loads((root / "panoptic_val.json").read_text())
    content["annotations"] = content["annotations"][:2]
    chosen = {a["image_id"] for a in content["annotations"]}
    content["images"] = [image for image in content["images"] if image["id"] in chosen]
    path = write_json(tmp_path / "panoptic.json", content)
    inputs = {"png_root": str(root / "panoptic"), "image_root": str(root / "images")}
    before = converted("auto", path, tmp_path / "a", inputs=inputs).maps
    write(tmp_path / "a", tmp_path / "b", target, with_stuff=True)
    after = back(target, tmp_path / "b", tmp_path / "c")
    assert len(after) == 2
    assert all(np.array_equal(after[name], before[name]) for name in before)


def test_semantic_pngs(shapes: Path, tmp_path: Path) -> None:
    report = write(shapes, tmp_path / "a", "semantic")
    assert report.notes == [
        "semantic PNGs hold no instances; void is 255, the other numbers are the ids of "
        "classes.json"
    ]
    classes = read_class_file(str(tmp_path / "a" / "classes.json"))
    assert [c.id for c in classes] == list(range(7)) and classes[3].name == "star"
    names = np.array([*(c.name for c in classes), *[""] * 249], object)
    for name, texts in read_result(shapes)[1].items():
        png = Image.open(tmp_path / "a" / "semantic" / Path(name).with_suffix(".png"))
        classes_of_pixels = np.vectorize(lambda text: text.split(" ")[0])(texts)
        assert np.array_equal(names[np.asarray(png)], classes_of_pixels)


def test_stuff_is_left_out_unless_wanted(shapes: Path, tmp_path: Path) -> None:
    report = write(shapes, tmp_path / "a", "coco-instances")
    assert "segments of stuff were left out; --with-stuff" in report.notes[0]
    content = json.loads((tmp_path / "a" / "instances.json").read_text())
    assert [c["name"] for c in content["categories"]] == ["circle", "square", "triangle", "star"]
    ids = [annotation["id"] for annotation in content["annotations"]]
    assert ids == list(range(1, len(ids) + 1))


def panoptic(root: Path, ids: np.ndarray) -> Path:
    """A data set of one image; ids are cars."""
    picture(root / "images" / "a.jpg", ids.shape)
    (root / "panoptic").mkdir()
    Image.fromarray(id_to_rgb(ids)).save(root / "panoptic" / "a.png")
    segments = [
        {"id": int(i), "category_id": 4, "iscrowd": 0, "area": 1} for i in np.unique(ids) if i
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": ids.shape[0], "width": ids.shape[1]}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}],
        "categories": [{"id": 4, "name": "car", "isthing": 1}],
    }
    write_json(root / "panoptic.json", content)
    return root


def test_yolo_says_what_one_outline_cannot_hold(tmp_path: Path) -> None:
    ids = np.zeros((10, 20), int)
    ids[1:8, 1:9] = 1
    ids[3:5, 3:6] = 0  # a hole of 6 pixels
    ids[0:2, 12:14] = 2
    ids[6:9, 12:18] = 2  # the larger part of the second car
    report = write(panoptic(tmp_path / "in", ids), tmp_path / "out", "yolo")
    assert report.notes == [
        "YOLO lines hold one outline: 2 objects lost holes or parts, 4 of their pixels are missing "
        "and 6 others were filled"
    ]
    lines = (tmp_path / "out" / "labels" / "a.txt").read_text().splitlines()
    numbers = sorted(tuple(map(float, line.split())) for line in lines)
    assert [len(row) for row in numbers] == [9, 9]
    assert {*numbers[0][1::2]} == {0.05, 0.45} and {*numbers[0][2::2]} == {0.1, 0.8}
    block = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    assert block["names"] == {0: "car"} and Path(block["path"], block["train"]).is_dir()


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 9))
def test_an_outline_covers_the_largest_part_with_its_holes_filled(
    seed: int, height: int, width: int
) -> None:
    """Compared with the pixels that cannot be reached from outside across edges."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height + 2, width + 2), bool)
    mask[1:-1, 1:-1] = rng.random((height, width)) < 0.6
    y, x = (int(v) for v in rng.integers(1, [height + 1, width + 1]))
    reached = np.zeros_like(mask)
    todo = [(y, x)]
    while todo:  # one connected part, by edges and corners
        y, x = todo.pop()
        if mask[y, x] and not reached[y, x]:
            reached[y, x] = True
            todo += [(y + a, x + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    if not reached.any():
        return
    outside = np.zeros_like(mask)
    todo = [(0, 0)]
    while todo:
        y, x = todo.pop()
        inside = 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]
        if inside and not reached[y, x] and not outside[y, x]:
            outside[y, x] = True
            todo += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    window = Polygons([outline_of(reached).reshape(-1).tolist()]).window(mask.shape)
    covered = np.zeros_like(mask)
    window.part_of(covered)[:] = window.mask
    assert np.array_equal(covered, ~outside)


def test_more_objects_than_a_byte_counts(tmp_path: Path) -> None:
    ids = np.arange(1, 301).reshape(15, 20)
    write(panoptic(tmp_path / "in", ids), tmp_path / "out", "two-channel")
    pixels = np.asarray(Image.open(tmp_path / "out" / "labels" / "a.png")).astype(int)
    assert (pixels[..., 0] == 4).all()
    assert np.array_equal(pixels[..., 1] + 256 * pixels[..., 2], ids)
    assert len(np.unique(back("two-channel", tmp_path / "out", tmp_path / "b")["a.jpg"])) == 300
    assert (read_id_map(tmp_path / "in" / "panoptic" / "a.png") == ids).all()


def test_crowds_that_two_channels_merge_are_counted(tmp_path: Path) -> None:
    car = Category(1, "car", True, (1, 1, 1))
    target = TwoChannelPngsTarget(str(tmp_path), [car], with_stuff=True)
    groups = [Group(car, True, "", id=1), Group(car, True, "", id=2), Group(car, False, "", id=3)]
    image = WrittenImage(1, "a.jpg", "a", (1, 3))
    assert target.add(image, np.array([[1, 2, 3]]), groups) == 1
    many = [Category(i, str(i), True, (1, 1, 1)) for i in range(300)]
    with pytest.raises(DatasetError, match="hold 255 classes, not 300"):
        TwoChannelPngsTarget(str(tmp_path), many, with_stuff=True)
