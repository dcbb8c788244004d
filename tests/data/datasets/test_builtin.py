from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from panoptic_ext.data import get_metadata, get_records, num_classes, thing_ids
from panoptic_ext.data.coco.label_png import write_id_map
from panoptic_ext.data.datasets.builtin import BUILTIN, register_builtin
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.errors import DatasetError

# image file, label file, JSON, image entry's file_name, image_id, category ids
LAYOUTS = {
    "coco_panoptic_val": (
        "coco/val2017/000000000139.jpg",
        "coco/panoptic_val2017/000000000139.png",
        "coco/annotations/panoptic_val2017.json",
        "000000000139.jpg",
        139,
        (1, 200),
    ),
    "cityscapes_panoptic_train": (
        "cityscapes/leftImg8bit/train/ulm/ulm_000001_000019_leftImg8bit.png",
        "cityscapes/gtFine/cityscapes_panoptic_train/ulm_000001_000019_gtFine_panoptic.png",
        "cityscapes/gtFine/cityscapes_panoptic_train.json",
        "ulm_000001_000019_gtFine_panoptic.png",
        "ulm_000001_000019",
        (24, 7),
    ),
    "ade20k_panoptic_val": (
        "ADEChallengeData2016/images/validation/ADE_val_00000001.jpg",
        "ADEChallengeData2016/ade20k_panoptic_val/ADE_val_00000001.png",
        "ADEChallengeData2016/ade20k_panoptic_val.json",
        "ADE_val_00000001.jpg",
        "ADE_val_00000001",
        (7, 0),
    ),
    "mapillary_vistas_panoptic_train": (
        "mapillary_vistas/training/images/xyz.jpg",
        "mapillary_vistas/training/panoptic/xyz.png",
        "mapillary_vistas/training/panoptic/panoptic_2018.json",
        "xyz.jpg",
        "xyz",
        (1, 3),
    ),
}
OWN_CATEGORIES = {
    "ade20k": [{"id": i, "name": f"c{i}", "isthing": int(i >= 7)} for i in range(150)],
    "mapillary_vistas": [{"id": i, "name": f"c{i}", "isthing": int(i < 3)} for i in range(1, 66)],
}


def make(root: Path, name: str) -> None:
    image, png, path, file_name, image_id, (thing, stuff) = LAYOUTS[name]
    for file in (image, png, path):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4)).save(root / image)
    ids = np.full((4, 6), 300)
    ids[:, 3:] = 70000
    write_id_map(root / png, ids)
    segments = [
        {"id": 300, "category_id": thing, "iscrowd": 0, "area": 12, "bbox": [0, 0, 3, 4]},
        {"id": 70000, "category_id": stuff, "iscrowd": 0, "area": 12, "bbox": [3, 0, 3, 4]},
    ]
    info: dict[str, Any] = {
        "images": [{"id": image_id, "file_name": file_name, "height": 4, "width": 6}],
        "annotations": [
            {"image_id": image_id, "file_name": Path(png).name, "segments_info": segments}
        ],
        "categories": OWN_CATEGORIES.get(name.split("_panoptic")[0], []),
    }
    (root / path).write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("name", "contiguous"),
    [
        ("coco_panoptic_val", [0, 132]),
        ("cityscapes_panoptic_train", [11, 0]),
        ("ade20k_panoptic_val", [7, 0]),
        ("mapillary_vistas_panoptic_train", [0, 2]),
    ],
)
def test_known_layouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, contiguous: list[int]
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data.v1"))
    make(tmp_path / "data.v1", name)
    (record,) = get_records(name)
    assert record["file_name"] == str(tmp_path / "data.v1" / LAYOUTS[name][0])
    assert record["pan_seg_file_name"] == str(tmp_path / "data.v1" / LAYOUTS[name][1])
    assert record["image_id"] == LAYOUTS[name][4]
    segments = record["segments_info"]
    assert [s["category_id"] for s in segments] == contiguous
    assert [s["isthing"] for s in segments] == [True, False]


@pytest.mark.parametrize(
    ("name", "classes", "things", "ignore_label"),
    [("coco_panoptic_train", 133, 80, 255), ("cityscapes_panoptic_val", 19, 8, 255)],
)
def test_classes_known_without_files(
    name: str, classes: int, things: int, ignore_label: int
) -> None:
    assert (num_classes(name), len(thing_ids(name))) == (classes, things)
    assert MetadataCatalog.get(name).ignore_label == ignore_label


def test_evaluator_types_and_ignore_labels() -> None:
    found = {}
    for dataset in BUILTIN:
        metadata = MetadataCatalog.get(f"{dataset}_panoptic_val")
        found[dataset] = (metadata.evaluator_type, metadata.ignore_label, metadata.label_divisor)
    assert found == {
        "coco": ("coco_panoptic_seg", 255, 1000),
        "cityscapes": ("cityscapes_panoptic_seg", 255, 1000),
        "ade20k": ("ade20k_panoptic_seg", 255, 1000),
        "mapillary_vistas": ("mapillary_vistas_panoptic_seg", 65, 1000),
    }


def test_a_name_that_is_taken_is_left_alone() -> None:
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.remove("ade20k_panoptic_train")
    DatasetCatalog.register("ade20k_panoptic_train", list)
    MetadataCatalog.get("ade20k_panoptic_train").set(thing_classes=["theirs"])
    register_builtin(["ade20k_panoptic_train"])
    assert DatasetCatalog.get("ade20k_panoptic_train") == []
    assert MetadataCatalog.get("ade20k_panoptic_train").thing_classes == ["theirs"]


def test_missing_data_says_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(DatasetError) as error:
        get_records("ade20k_panoptic_train")
    assert str(tmp_path / "ADEChallengeData2016/ade20k_panoptic_train.json") in str(error.value)
    assert "Put the data" in str(error.value)


def test_names_of_an_installed_mask2former_wait_for_their_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mask2former").mkdir()
    (tmp_path / "mask2former" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [n for n in DatasetCatalog if n.startswith(("ade20k_pan", "coco_pan"))]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_builtin()
    assert "coco_panoptic_val" in DatasetCatalog
    assert "ade20k_panoptic_val" not in DatasetCatalog
    assert get_metadata("ade20k_panoptic_val").evaluator_type == "ade20k_panoptic_seg"


# A module of somebody else that registers the name of one of ours, as Mask2Former does.
OTHERS = """
from detectron2.data import DatasetCatalog, MetadataCatalog
def records():
    return ["theirs"]
DatasetCatalog.register("ade20k_panoptic_train", records)
MetadataCatalog.get("ade20k_panoptic_train").set(thing_classes=["theirs"], ignore_label=0)
"""


@pytest.fixture
def others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of that module; ours of the name is not registered yet."""
    (tmp_path / "others_data_sets.py").write_text(OTHERS)
    monkeypatch.syspath_prepend(tmp_path)
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop("ade20k_panoptic_train", None)
    yield "others_data_sets"
    sys.modules.pop("others_data_sets", None)


def test_who_registers_a_builtin_name_after_it_was_used_gets_it(
    others: str, caplog: pytest.LogCaptureFixture
) -> None:
    """This was "already registered", in the import of the other module."""
    assert get_metadata("ade20k_panoptic_train").evaluator_type == "ade20k_panoptic_seg"
    importlib.import_module(others)
    assert DatasetCatalog.get("ade20k_panoptic_train") == ["theirs"]
    assert MetadataCatalog.get("ade20k_panoptic_train").ignore_label == 0
    assert "is from now on the one that others_data_sets registers" in caplog.text
    with pytest.raises(AssertionError, match="already registered"):  # as ever, by a third one
        DatasetCatalog.register("ade20k_panoptic_train", list)


def test_who_registered_a_builtin_name_before_keeps_it_and_is_named(
    others: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Which registry answered was not said."""
    importlib.import_module(others)
    opts = ["DATASETS.TRAIN", "['ade20k_panoptic_train']"]
    load_cfg("", opts, use_data=False)
    assert DatasetCatalog.get("ade20k_panoptic_train") == ["theirs"]
    assert "ade20k_panoptic_train is the one that others_data_sets registered" in caplog.text


def test_a_config_registers_the_names_that_it_uses_and_no_other(
    others: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Any config registered all of them, so that Mask2Former could not be imported."""
    load_cfg("", ["DATASETS.TRAIN", "['coco_panoptic_train']"], use_data=False)
    assert "ade20k_panoptic_train" not in DatasetCatalog
    importlib.import_module(others)
    assert not caplog.messages
