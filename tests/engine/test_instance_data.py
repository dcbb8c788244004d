"""Runs whose data sets hold instances alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from panoptic_ext.data import PanopticDatasetMapper, get_records
from panoptic_ext.data.datasets.metadata_file import load_metadata
from panoptic_ext.engine import load_cfg, save_run_info
from panoptic_ext.engine.loader import build_train_loader
from panoptic_ext.errors import ConfigError
from tests import ROOT
from tests.tiny.instance_dataset import TinyInstances

COMMON = ROOT / "configs" / "common"
TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.SEM_SEG_HEAD.MASK_DIM", "32"),
    *("MODEL.MASK_FORMER.HIDDEN_DIM", "32", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "10"),
    *("MODEL.MASK_FORMER.DIM_FEEDFORWARD", "32", "INPUT.MIN_SIZE_TRAIN", "[40]"),
]


@pytest.fixture
def config(tmp_path: Path, clean_catalogs: None) -> Path:
    data = TinyInstances(tmp_path / "tiny")
    path = tmp_path / "instances.yaml"
    path.write_text(
        f"_BASE_: [{COMMON}/mask2former/Base-Mask2Former-Small.yaml,"
        f" {COMMON}/mask2former/Base-Instance.yaml]\n"
        "DATASETS:\n  TRAIN: [tiny_run]\n  TEST: [tiny_run]\n  INSTANCES:\n"
        f"    tiny_run: {{JSON: {data.json}, IMAGE_ROOT: {data.images}}}\n"
        f"OUTPUT_DIR: {tmp_path}/run\n"
    )
    return path


def test_an_instance_model_trains_on_instance_data(config: Path, tmp_path: Path) -> None:
    cfg = load_cfg(str(config), TINY)
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 2
    model = build_model(cfg)
    samples = [PanopticDatasetMapper(cfg, True)(record) for record in get_records("tiny_run")]
    losses = model(samples)
    assert all(torch.isfinite(loss) for loss in losses.values())
    batch = next(iter(build_train_loader(cfg, seed=0).index_batches()))
    assert len(batch) == cfg.SOLVER.IMS_PER_BATCH
    save_run_info(cfg, str(tmp_path / "run"))
    metadata = load_metadata(str(tmp_path / "run" / "metadata.json"))
    assert metadata.thing_classes == ["cup", "plate"] and metadata.isthing == (True, True)


def test_a_model_of_segments_refuses_them(config: Path) -> None:
    text = config.read_text().replace(f", {COMMON}/mask2former/Base-Instance.yaml", "")
    config.write_text(text)
    with pytest.raises(ConfigError, match=r"tiny_run holds instances alone.*Base-Instance.yaml"):
        load_cfg(str(config))
    base = "panoptic_fpn/Base-PanopticFPN-Small.yaml"
    config.write_text(text.replace("mask2former/Base-Mask2Former-Small.yaml", base))
    with pytest.raises(ConfigError, match=r"tiny_run holds instances alone, and \w*PanopticFPN"):
        load_cfg(str(config))


def test_cocos_names_need_no_registration() -> None:
    path = ROOT / "configs/coco/mask2former/mask2former_instance_R50_bs16_50ep.yaml"
    cfg = load_cfg(str(path))
    assert cfg.DATASETS.TRAIN == ("coco_2017_train",)
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 80
    assert MetadataCatalog.get("coco_2017_val").json_file.endswith("instances_val2017.json")
