"""Every shipped YAML merges, keeps its `_BASE_` in its task, and builds its model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.modeling import build_model

from panoptic_ext.engine.run_config import load_cfg
from tests import ROOT

CONFIGS = sorted(ROOT.glob("configs/**/*.yaml"))
LEAVES = [p for p in CONFIGS if not p.name.startswith("Base-")]

# Where each data set's JSON lies below $DETECTRON2_DATASETS: (path, classes, of them things).
JSONS = [
    ("coco/annotations/panoptic_{}2017.json", None, None),
    ("cityscapes/gtFine/cityscapes_panoptic_{}.json", None, None),
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
CLASSES = {
    "coco": (133, 80),
    "cityscapes": (19, 8),
    "ade20k": (150, 100),
    "mapillary_vistas": (65, 37),
    "facade": (10, 5),
    "nuclei": (2, 1),
    "shapes": (7, 4),
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT / "configs").as_posix()


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """JSONs that hold no more than categories and one empty image."""
    root = tmp_path_factory.mktemp("datasets")
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True)
    for template, classes, things in JSONS:
        for split in SPLITS.get(template.split("/")[0], ("train", "val")):
            path = root / template.format(split)
            path.parent.mkdir(parents=True, exist_ok=True)
            if classes is None:
                continue  # the class list is in the code
            categories = [
                {"id": i + 1, "name": f"class{i}", "isthing": int(i < things)}
                for i in range(classes)
            ]
            image = {"id": 1, "file_name": "1.jpg", "width": 8, "height": 8}
            label = {"image_id": 1, "file_name": "1.png", "segments_info": []}
            path.write_text(
                json.dumps({"categories": categories, "images": [image], "annotations": [label]})
            )
    for template in INSTANCES:
        categories = [{"id": i + 1, "name": f"class{i}"} for i in range(100)]
        for split in ("train", "val"):
            content = {"categories": categories, "images": [], "annotations": []}
            (root / template.format(split)).write_text(json.dumps(content))
    return root


def test_configs_are_found():
    assert len(LEAVES) >= 10


@pytest.mark.parametrize("path", CONFIGS, ids=relative)
def test_base_stays_in_its_task(path):
    bases = (yaml.safe_load(path.read_text()) or {}).get("_BASE_", [])
    for base in [bases] if isinstance(bases, str) else bases:
        target = (path.parent / base).resolve()
        assert target.is_file(), f"{relative(path)}: _BASE_ {base} does not exist"
        data_set, model = relative(target).split("/")[:2]
        assert model == path.parent.name, "a base of another model"
        assert data_set in ("common", path.parts[-3]), "a base of another data set"


@pytest.mark.slow
@pytest.mark.parametrize("path", LEAVES, ids=relative)
def test_builds_with_classes_from_its_data_set(path, data_root, monkeypatch, clean_catalogs):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data_root))
    shallow = ["MODEL.SWIN.DEPTHS", "[1, 1, 1, 1]"]  # a full Swin-L takes seconds to build
    shallow += ["MODEL.TIMM.PRETRAINED", "False"]  # no downloads
    cfg = load_cfg(str(path), ["MODEL.DEVICE", "cpu", *shallow])
    assert path.parts[-3] in cfg.OUTPUT_DIR and cfg.DATASETS.TRAIN[0].startswith(path.parts[-3])
    with torch.device("cpu"):
        model = build_model(cfg)
    classes = {"coco": 133, "cityscapes": 19, "ade20k": 150, "mapillary_vistas": 65}
    classes |= {"facade": 10, "nuclei": 2, "shapes": 7}
    if "_instance_" in path.name:
        classes = {"coco": 80, "cityscapes": 8, "ade20k": 100, "mapillary_vistas": 37}
        classes |= {"facade": 5, "nuclei": 1, "shapes": 4}
    assert classes[path.parts[-3]] == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    assert sum(p.numel() for p in model.parameters()) > 1e6
