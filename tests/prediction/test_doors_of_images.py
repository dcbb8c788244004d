"""Evaluation, Predictor and Detectron2's DefaultPredictor give a model the same images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor
from detectron2.structures import ImageList
from PIL import Image

from panoptic_ext import load
from panoptic_ext.engine import Trainer
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.prediction.predictor import Predictor
from tests import ROOT
from tests.tiny.finished_run import finished_run
from tests.tiny.train_in_process import train

KEYS = [
    *("INPUT.TEST_RESIZE", "longest_side", "INPUT.IMAGE_SIZE", "70"),
    *("INPUT.PAD_TO_SQUARE", "True", "INPUT.PAD_VALUE", "black"),
    *("INPUT.MIN_SIZE_TEST", "70", "INPUT.MAX_SIZE_TEST", "70"),
]


@pytest.fixture
def folder(tmp_path: Path, clean_catalogs: None) -> Path:
    finished_run(tmp_path)
    return tmp_path


def test_every_door_resizes_and_pads_alike(folder: Path) -> None:
    weights = f"{folder}/run/model_final.pth"
    cfg = load_cfg(str(folder / "leaf.yaml"), [*KEYS, "MODEL.WEIGHTS", weights])
    batch = next(iter(Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])))
    ours, theirs = Predictor(cfg, weights=weights), DefaultPredictor(cfg)
    assert batch[0]["image"].shape == (3, 52, 70)  # of 48 x 64; 52.5 rounds to the even number
    bgr = np.asarray(Image.open(batch[0]["file_name"]))[:, :, ::-1]
    seen: list[torch.Tensor] = []
    for model in (ours.model, theirs.model):
        model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        evaluated = ours.model(batch)[0]
    predicted = ours(bgr)
    assert torch.equal(predicted["sem_seg"], evaluated["sem_seg"])
    assert torch.equal(predicted["panoptic_seg"][0], evaluated["panoptic_seg"][0])
    # Detectron2 rounds 52.5 up: one more row, and otherwise the same image within the same square.
    theirs(bgr)
    assert torch.equal(seen[0], seen[1]) and seen[2].shape == seen[0].shape == (1, 3, 96, 96)
    black = -ours.model.pixel_mean / ours.model.pixel_std
    assert (seen[0][0, :, 52:] == black).all() and (seen[2][0, :, 53:] == black).all()
    assert not (seen[2][0, :, 52] == black.view(3, 1)).all()


@pytest.mark.slow
def test_windows_from_yaml_to_results_and_pictures(tmp_path: Path, clean_catalogs: None) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    opts = {
        "MODEL.DEVICE": "cpu", "MODEL.VIT.DEPTH": 2, "MODEL.VIT.EMBED_DIM": 32,
        "MODEL.VIT.NUM_HEADS": 2, "MODEL.EOMT.NUM_BLOCKS": 1, "MODEL.MASK_FORMER.TASK": "semantic",
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": False, "MODEL.MASK_FORMER.TEST.INSTANCE_ON": False,
        "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": True, "TEST.SEMANTIC_WINDOWS": True,
        "INPUT.IMAGE_SIZE": 32, "INPUT.TEST_RESIZE": "shortest_edge", "SOLVER.MAX_ITER": 2,
        "INPUT.PAD_TO_SQUARE": True, "SOLVER.WARMUP_ITERS": 1, "SOLVER.IMS_PER_BATCH": 1,
        "DATASETS.SHAPES.NUM_TRAIN": 2, "DATASETS.SHAPES.NUM_VAL": 2,
        "DATASETS.SHAPES.IMAGE_SIZE": [48, 108], "DATASETS.SHAPES.CACHE": tmp_path / "cache",
        "DATALOADER.NUM_WORKERS": 0, "OUTPUT_DIR": tmp_path / "run",
        "TEST.EVALUATORS": ["semantic"],
    }  # fmt: skip
    pairs = [str(text) for pair in opts.items() for text in pair]
    config = ROOT / "configs/shapes/eomt/eomt_vit_tiny_shapes.yaml"
    assert train(["--config-file", str(config), *pairs]) == 0
    results = tmp_path / "run/inference/shapes_panoptic_val/results.json"
    assert json.loads(results.read_text())["sem_seg"]["mIoU"] >= 0
    model = load(tmp_path / "run")
    seen: list[tuple[int, ...]] = []
    network = model.predictor.model
    preprocess = network.preprocess_image

    def recorded(inputs: list[dict[str, torch.Tensor]]) -> ImageList:
        batch = preprocess(inputs)
        seen.append(tuple(batch.tensor.shape))
        return batch

    network.preprocess_image = recorded
    result = model(np.zeros((48, 108, 3), np.uint8))
    assert seen == [(3, 3, 32, 32)] and result.to_semantic().shape == (48, 108)
