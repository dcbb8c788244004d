"""Data sets that hold only what shipped configs need."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

# Where each data set's JSON lies below $DETECTRON2_DATASETS: (path, classes, of them things).
# COCO's and Cityscapes' class lists are in the code.
JSONS = [
    ("ADEChallengeData2016/ade20k_panoptic_{}.json", 150, 100),
    ("mapillary_vistas/{}/panoptic/panoptic_2018.json", 65, 37),
    ("facade/panoptic_{}.json", 10, 5),
    ("nuclei/panoptic_{}.json", 2, 1),
]
INSTANCES = ["ADEChallengeData2016/ade20k_instance_{}.json"]  # 100 things
SPLITS = {"mapillary_vistas": ("training", "validation")}
FOLDERS = [f"ADEChallengeData2016/{f}" for f in ("images/training", "images/validation")]
FOLDERS += [f"ADEChallengeData2016/ade20k_panoptic_{s}" for s in ("train", "val")]
FOLDERS += [f"mapillary_vistas/{s}/images" for s in ("training", "validation")]
FOLDERS += [f"{d}/{f}" for d in ("facade", "nuclei") for f in ("images", "panoptic")]


def categories(classes: int, things: int) -> list[dict[str, object]]:
    return [{"id": i + 1, "name": f"class{i}", "isthing": int(i < things)} for i in range(classes)]


def write_jsons(root: Path) -> None:
    """JSONs that hold categories and at most one image without segments."""
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True)
    image = {"id": 1, "file_name": "1.jpg", "width": 8, "height": 8}
    label = {"image_id": 1, "file_name": "1.png", "segments_info": []}
    for template, classes, things in JSONS:
        content = {
            "categories": categories(classes, things), "images": [image], "annotations": [label],
        }  # fmt: skip
        for split in SPLITS.get(template.split("/")[0], ("train", "val")):
            path = root / template.format(split)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
    for template in INSTANCES:
        named = [{"id": c["id"], "name": c["name"]} for c in categories(100, 100)]
        for split in ("train", "val"):
            content = {"categories": named, "images": [], "annotations": []}
            (root / template.format(split)).write_text(json.dumps(content))


@pytest.fixture(scope="module")
def dataset_jsons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """$DETECTRON2_DATASETS with such JSONs; catalogues are as before when the module is done."""
    root = tmp_path_factory.mktemp("datasets")
    write_jsons(root)
    kept = [(c, dict(c.data)) for c in (DatasetCatalog, MetadataCatalog)]
    values = {name: dict(vars(entry)) for name, entry in MetadataCatalog.data.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        yield root
    for catalog, before in kept:
        catalog.data.clear()
        catalog.data.update(before)
    for name, entry in MetadataCatalog.data.items():
        vars(entry).clear()
        vars(entry).update(values[name])
