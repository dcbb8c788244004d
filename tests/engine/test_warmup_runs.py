"""Trainings with rates by layer and two warm-ups: resumed, in half precision, with clipping."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.projects.deeplab.lr_scheduler import WarmupPolyLR
from torch import nn

from tests.tiny.training import PanopticExtTestTiny, TinyTrainer, tiny_cfg

RATES = {
    "LR_SCHEDULER_NAME": "WarmupPolyLR",
    "OPTIMIZER": "ADAMW",
    "LAYER_DECAY": 0.5,
    "BACKBONE_WARMUP_ITERS": 4,
    "WARMUP_FACTOR": 0.0,
}


class LayeredTrainer(TinyTrainer):
    """The trainer of a tiny model whose backbone has three blocks."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = PanopticExtTestTiny()
        blocks = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4))
        model.backbone = nn.Sequential(OrderedDict(blocks=blocks, norm=nn.LayerNorm(4)))
        return model


def run_cfg(folder: Path, **solver: Any) -> CfgNode:
    cfg = tiny_cfg(folder, **{**RATES, **solver})
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.01
    return cfg


def trained(cfg: CfgNode, *, resume: bool = False, stop_at: int = 10**9) -> LayeredTrainer:
    torch.manual_seed(cfg.SEED)
    trainer = LayeredTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.max_iter = min(cfg.SOLVER.MAX_ITER, stop_at)
    trainer.train()
    return trainer


@pytest.mark.parametrize(("stop_at", "half"), [(2, False), (5, True)])
def test_a_stopped_and_resumed_run_equals_a_whole_one(
    tmp_path: Path, stop_at: int, half: bool
) -> None:
    """Stopped at the end of the first warm-up, and in the second."""

    def cfg_of(folder: str) -> CfgNode:
        cfg = run_cfg(tmp_path / folder)
        cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE = half, "bfloat16"
        return cfg

    whole = trained(cfg_of("whole"))
    first = trained(cfg_of("parts"), stop_at=stop_at)
    heads = {"head", "query", "norm"}
    assert moved_parts(first) == (heads if stop_at == 2 else {*heads, "backbone"})
    second = trained(cfg_of("parts"), resume=True)
    assert second.start_iter == stop_at and moved_parts(second) == {*heads, "backbone"}
    assert first.losses + second.losses == whole.losses
    state, expected = second.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    groups, others = second.optimizer.param_groups, whole.optimizer.param_groups
    assert [group["lr"] for group in groups] == [group["lr"] for group in others]


def moved_parts(trainer: LayeredTrainer) -> set[str]:
    """Parts of the model with a parameter that is no longer as it was at iteration 0."""
    torch.manual_seed(trainer.cfg.SEED)
    start = dict(LayeredTrainer.build_model(trainer.cfg).named_parameters())
    return {
        name.partition(".")[0]
        for name, parameter in trainer.model.named_parameters()
        if not torch.equal(parameter, start[name])
    }


def test_both_rates_are_written_and_the_hook_has_the_state(tmp_path: Path) -> None:
    trainer = trained(run_cfg(tmp_path, MAX_ITER=20))
    (line,) = map(json.loads, (tmp_path / "metrics.json").read_text().splitlines())
    assert line["iteration"] == 19
    assert line["lr"] == pytest.approx(0.01 * (1 - 17 / 18) ** 0.9)
    assert line["lr_backbone"] == pytest.approx(0.01 * (1 - 13 / 14) ** 0.9)
    # Detectron2's own trainers save the schedule by their hook alone.
    assert trainer.state_dict()["hooks"]["LRScheduler"]["last_epoch"] == 20


def test_a_run_of_an_earlier_version_goes_on_with_a_larger_max_iter(tmp_path: Path) -> None:
    """Detectron2's WarmupPolyLR fails there, because its state holds the old length."""

    class EarlierTrainer(LayeredTrainer):
        @classmethod
        def build_lr_scheduler(cls, cfg: CfgNode, optimizer_: torch.optim.Optimizer) -> Any:
            return WarmupPolyLR(optimizer_, 12, 0.0, 2)

    keys = {"LAYER_DECAY": 1.0, "BACKBONE_WARMUP_ITERS": 0}
    EarlierTrainer(run_cfg(tmp_path, **keys)).train()
    longer = trained(run_cfg(tmp_path, MAX_ITER=16, **keys), resume=True)
    assert longer.start_iter == 12
    assert longer.storage.history("lr").values() == [
        (pytest.approx(0.01 * (1 - t / 16) ** 0.9), t) for t in range(12, 16)
    ]
