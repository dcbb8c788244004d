"""A model of a few parameters, its data and a config, to test runs without images."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.engine import Trainer, TrainLoader

NAME = "PanopticExtTestTiny"


class PanopticExtTestTiny(nn.Module):
    """Two layers, dropout and a batch norm: losses depend on weights, data and random numbers."""

    def __init__(self, cfg: CfgNode | None = None) -> None:
        super().__init__()
        self.backbone = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.query = nn.Embedding(2, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        x = torch.stack([d["x"] for d in batch])
        features = self.norm(self.backbone(x)) + self.query.weight.sum(0)
        features = nn.functional.dropout(features, 0.5, self.training)
        bad = sum(d.get("bad", 0.0) for d in batch)
        return {
            "loss_a": self.head(features).square().mean() + bad,
            "loss_b": features.abs().mean(),
        }


if NAME not in META_ARCH_REGISTRY:
    META_ARCH_REGISTRY.register(PanopticExtTestTiny)


def tiny_cfg(output_dir: Path | str, **solver: Any) -> CfgNode:
    """Config of a run of the tiny model; keywords are keys of SOLVER."""
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = NAME
    cfg.MODEL.DEVICE = "cpu"
    cfg.OUTPUT_DIR = str(output_dir)
    cfg.SEED = 3
    values = {"IMS_PER_BATCH": 4, "MAX_ITER": 12, "CHECKPOINT_PERIOD": 4, "BASE_LR": 0.01, **solver}
    for key, value in values.items():
        cfg.SOLVER[key] = value
    cfg.SOLVER.WARMUP_ITERS = 2
    return cfg


def tiny_records(number: int = 10) -> list[dict[str, Any]]:
    """Records without files; every third is taller than wide."""
    return [
        {"file_name": f"{i}.jpg", "image_id": i, "width": 4, "height": 3 + 2 * (i % 3 == 0)}
        for i in range(number)
    ]


def tiny_mapper(record: dict[str, Any]) -> dict[str, Any]:
    """A sample that draws from each of the three generators, as augmentations do."""
    x = torch.tensor([np.random.rand(), random.random(), torch.rand(()).item()])
    return {**record, "x": x.float() + record["image_id"] / 10}


class Killed(BaseException):
    """Replaces kill -9: no code of the trainer handles it."""


class TinyTrainer(Trainer):
    """The trainer on the tiny data; keeps the raw losses of each step, and may be killed at one."""

    kill_at: int | None = None

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        self.losses: list[float] = []

    def run_step(self) -> None:
        if self.iter == self.kill_at:
            raise Killed
        super().run_step()

    def after_step(self) -> None:
        self.losses.append(self.storage.latest().get("total_loss", (0.0, 0))[0])
        super().after_step()

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        return TrainLoader(
            tiny_records(), tiny_mapper, batch_size=cfg.SOLVER.IMS_PER_BATCH, seed=cfg.SEED
        )

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        return {}
