"""Every shipped YAML merges, keeps its `_BASE_` in its task, and builds its model."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from detectron2.modeling import build_model

from tests import ROOT
from tests.config.shipped import (
    CONFIGS,
    LEAVES,
    failures,
    load_shipped,
    relative,
    without_initialisation,
)

CLASSES = {
    "coco": 133, "cityscapes": 19, "ade20k": 150, "mapillary_vistas": 65, "facade": 10,
    "nuclei": 2, "shapes": 7,
}  # fmt: skip
THINGS = {
    "coco": 80, "cityscapes": 8, "ade20k": 100, "mapillary_vistas": 37, "facade": 5, "nuclei": 1,
    "shapes": 4,
}  # fmt: skip


def test_every_yaml_of_the_folder_is_found():
    names = [p for p in (ROOT / "configs").rglob("*") if p.suffix in (".yaml", ".yml")]
    assert sorted(names) == CONFIGS
    folders = {path.parent for path in CONFIGS if path.parts[-3] != "common"}
    assert {path.parent for path in LEAVES} == folders
    assert {path.parts[-3] for path in LEAVES} == CLASSES.keys()
    assert {path.parts[-2] for path in LEAVES} == {
        "mask2former", "efficientps", "eomt", "panoptic_fpn", "pmt", "transformers",
    }  # fmt: skip


def check_bases(path: Path) -> None:
    bases = (yaml.safe_load(path.read_text()) or {}).get("_BASE_", [])
    for base in [bases] if isinstance(bases, str) else bases:
        target = (path.parent / base).resolve()
        assert target.is_file(), f"_BASE_ {base} does not exist"
        data_set, model = relative(target).split("/")[:2]
        assert model == path.parent.name, f"_BASE_ {base} is of another model"
        assert data_set in ("common", path.parts[-3]), f"_BASE_ {base} is of another data set"


def test_bases_stay_in_their_task():
    assert failures(check_bases, CONFIGS) == {}


def check_build(path: Path) -> None:
    cfg = load_shipped(path)
    data_set = path.parts[-3]
    assert data_set in cfg.OUTPUT_DIR and cfg.DATASETS.TRAIN[0].startswith(data_set)
    with without_initialisation():
        model = build_model(cfg)
    classes = (THINGS if "_instance_" in path.name else CLASSES)[data_set]
    assert classes == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    is_tiny = path.parent.name in ("transformers", "eomt")  # see `tiny_network`
    assert sum(p.numel() for p in model.parameters()) > (1e4 if is_tiny else 1e6)


@pytest.mark.slow
def test_leaves_build_with_the_classes_of_their_data_set(dataset_jsons):
    assert failures(check_build, LEAVES) == {}


def test_failures_names_each_file_with_its_reason():
    path = ROOT / "configs/shapes/mask2former/not_there.yaml"
    report = failures(check_bases, [CONFIGS[0], path])
    assert list(report) == ["shapes/mask2former/not_there.yaml"]
    assert report["shapes/mask2former/not_there.yaml"].startswith("FileNotFoundError: ")
