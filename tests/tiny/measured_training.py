"""A tiny training whose evaluations give the values that a test says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from tests.tiny.training import Killed, TinyTrainer, tiny_cfg

METRIC = "panoptic_seg/PQ"


class MeasuredTrainer(TinyTrainer):
    """Its evaluations give the values of `measured`, one after another by iteration."""

    killed_in_evaluation = -1
    measured: dict[int, float]
    evaluated: list[int]
    current: MeasuredTrainer

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        iteration = min(cls.current.iter, cls.current.max_iter - 1)
        if iteration == cls.current.killed_in_evaluation:
            raise Killed
        cls.evaluated.append(iteration)
        return {"panoptic_seg": {"PQ": cls.measured[iteration], "SQ": 1.0}}


def cfg_of(folder: Path, *, patience: int = 0, min_delta: float = 0.0, **solver: Any) -> CfgNode:
    """Config of a run that is evaluated and saved after every second iteration."""
    cfg = tiny_cfg(folder, **{"CHECKPOINT_PERIOD": 2, **solver})
    cfg.DATASETS.TEST = ["any"]
    cfg.TEST.EVAL_PERIOD = 2
    cfg.TEST.BEST_METRIC = METRIC
    cfg.TEST.EARLY_STOPPING.PATIENCE = patience
    cfg.TEST.EARLY_STOPPING.MIN_DELTA = min_delta
    return cfg


def trainer_of(
    cfg: CfgNode, values: list[float], *, resume: bool = False, **attributes: int
) -> MeasuredTrainer:
    """A trainer whose evaluations after iterations 1, 3, 5, ... give `values`."""
    torch.manual_seed(cfg.SEED)
    MeasuredTrainer.measured = dict(zip(range(1, 99, 2), values, strict=False))
    MeasuredTrainer.evaluated = []
    trainer = MeasuredTrainer(cfg)
    MeasuredTrainer.current = trainer
    for name, value in attributes.items():
        setattr(trainer, name, value)
    trainer.resume_or_load(resume=resume)
    return trainer


def load(file: Path) -> dict[str, Any]:
    """The content of a checkpoint."""
    return torch.load(file, weights_only=True)
