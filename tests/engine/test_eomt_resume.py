"""A training of EoMT that is resumed while its masks vanish equals one that was not stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from panoptic_ext.engine import Trainer
from panoptic_ext.engine.run_config import load_cfg
from tests import ROOT

pytest.importorskip("timm", reason="EoMT's ViT is a timm model")

TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.VIT.EMBED_DIM": 24,
    "MODEL.VIT.NUM_HEADS": 2,
    "MODEL.VIT.DEPTH": 3,
    "MODEL.VIT.IMAGE_SIZE": 64,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 32,
    "INPUT.MIN_SIZE_TRAIN": "[64]",
    "DATASETS.SHAPES.NUM_TRAIN": 4,
    "DATASETS.SHAPES.NUM_VAL": 1,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 12,
    "SOLVER.CHECKPOINT_PERIOD": 100,
    "TEST.EVAL_PERIOD": 0,
    "SEED": 3,
}


def run_cfg(folder: Path, name: str) -> CfgNode:
    places = {"OUTPUT_DIR": folder / name, "DATASETS.SHAPES.CACHE": folder / "data"}
    pairs = [str(text) for pair in {**TINY, **places}.items() for text in pair]
    return load_cfg(str(ROOT / "configs/shapes/eomt/eomt_vit_tiny_shapes.yaml"), pairs)


def trained(cfg: CfgNode, *, resume: bool = False, stop_at: int = 12) -> Trainer:
    torch.manual_seed(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.max_iter = stop_at
    # Masks are what is tested; an evaluation of random weights only takes time.
    trainer.test = lambda *args, **kwargs: {}
    trainer.train()
    return trainer


@pytest.mark.slow
def test_a_stopped_and_resumed_run_equals_a_whole_one(tmp_path: Path) -> None:
    whole = trained(run_cfg(tmp_path, "whole"))
    trained(run_cfg(tmp_path, "parts"), stop_at=6)
    resumed = trained(run_cfg(tmp_path, "parts"), resume=True)
    assert resumed.start_iter == 6
    # It stops where some queries are masked and some are not.
    assert 0 < resumed.model.annealing.probabilities(6)[1] < 1
    weights, expected = resumed.model.state_dict(), whole.model.state_dict()
    assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []
