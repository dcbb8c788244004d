"""The folder of a training run: a tiny model of random weights, its config and its data set."""

from __future__ import annotations

import json

import numpy as np
import torch
from detectron2.modeling import build_model
from PIL import Image

from panoptic_ext.data import write_id_map
from panoptic_ext.engine import Checkpointer, load_cfg, save_run_info
from tests import ROOT

NAME = "predict_test_val"


CATEGORIES = [
    {"id": 7, "name": "disc", "isthing": 1, "color": [200, 30, 30]},
    {"id": 40, "name": "grass", "isthing": 0, "color": [30, 200, 30]},
    {"id": 90, "name": "sky", "isthing": 0, "color": [30, 30, 200]},
]


CONFIG = f"""
_BASE_: {ROOT}/configs/shapes/panoptic_fpn/Base-PanopticFPN-shapes.yaml
MODEL:
  DEVICE: cpu
  RESNETS: {{STEM_OUT_CHANNELS: 8}}
  FPN: {{OUT_CHANNELS: 16}}
  SEM_SEG_HEAD: {{CONVS_DIM: 32}}
  ROI_BOX_HEAD: {{FC_DIM: 16}}
  ROI_MASK_HEAD: {{CONV_DIM: 16}}
INPUT: {{MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 96}}
DATASETS:
  TRAIN: [{NAME}]
  TEST: [{NAME}]
"""


def finished_run(base):
    """Fill the folder `base`: a data set in `data`, and the files of a training run in `run`."""
    _write_data(base / "data")
    (base / "leaf.yaml").write_text(
        CONFIG + f"  PANOPTIC:\n    {NAME}:\n      JSON: {base}/data/val.json\n"
        f"      IMAGE_ROOT: {base}/data/images\n      PNG_ROOT: {base}/data/labels\n"
        f"OUTPUT_DIR: {base}/run\n"
    )
    cfg = load_cfg(str(base / "leaf.yaml"))
    torch.manual_seed(0)
    (base / "run").mkdir()
    Checkpointer(build_model(cfg), str(base / "run")).save("model_final")
    save_run_info(cfg, str(base / "run"))


def _write_data(folder):
    (folder / "images" / "a").mkdir(parents=True)
    (folder / "images" / "b").mkdir()
    (folder / "labels").mkdir()
    ids = np.full((48, 64), 2, np.int32)
    ids[10:30, 10:30] = 1
    segments = [
        {"id": 1, "category_id": 7, "area": 400, "bbox": [10, 10, 20, 20], "iscrowd": 0},
        {"id": 2, "category_id": 40, "area": 2672, "bbox": [0, 0, 64, 48], "iscrowd": 0},
    ]
    images, annotations = [], []
    for number, name in enumerate(["a/same.jpg", "b/same.jpg"], 17):
        picture(number).save(folder / "images" / name)
        write_id_map(folder / "labels" / f"{number}.png", ids)
        images.append({"id": number, "file_name": name, "height": 48, "width": 64})
        annotation = {"image_id": number, "file_name": f"{number}.png", "segments_info": segments}
        annotations.append(annotation)
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / "val.json").write_text(json.dumps(content))


def picture(seed=0, height=48, width=64):
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
