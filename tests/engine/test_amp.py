"""Training with a gradient scaler (SOLVER.AMP), on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import nn

from panoptic_ext.engine.train_step import TrainStep
from tests.tiny.training import TinyTrainer, tiny_cfg

pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA is not available.*:UserWarning")
REAL = torch.amp.GradScaler


@pytest.fixture
def cpu_scaler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every gradient scaler is one for the CPU, with a scale that changes within a few steps."""
    monkeypatch.setattr(
        torch.amp,
        "GradScaler",
        lambda device: REAL("cpu", init_scale=64.0, growth_interval=3, growth_factor=2.0),
    )


def amp_cfg(folder: Path, *, enabled: bool = True, **solver: Any) -> CfgNode:
    cfg = tiny_cfg(folder, **solver)
    cfg.SOLVER.AMP.ENABLED = enabled
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.05
    return cfg


def trained(cfg: CfgNode, *, resume: bool = False) -> TinyTrainer:
    torch.manual_seed(cfg.SEED)
    trainer = TinyTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


@pytest.mark.usefixtures("cpu_scaler")
def test_the_scale_changes_neither_steps_nor_clipping(tmp_path: Path) -> None:
    scaled = trained(amp_cfg(tmp_path / "scaled"))
    plain = trained(amp_cfg(tmp_path / "plain", enabled=False))
    assert scaled._trainer.grad_scaler.get_scale() == 64 * 2**4
    assert plain._trainer.grad_scaler is None
    torch.testing.assert_close(scaled.losses, plain.losses, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("cpu_scaler")
def test_a_resumed_run_has_the_scale_of_the_first(tmp_path: Path) -> None:
    whole = trained(amp_cfg(tmp_path / "whole"))
    trained(amp_cfg(tmp_path / "parts", MAX_ITER=8))
    second = trained(amp_cfg(tmp_path / "parts"), resume=True)
    assert second.start_iter == 8
    assert second.losses == whole.losses[8:]
    assert second._trainer.grad_scaler.state_dict() == whole._trainer.grad_scaler.state_dict()


@pytest.mark.usefixtures("cpu_scaler")
def test_a_checkpoint_without_scale_starts_one(tmp_path: Path) -> None:
    trained(amp_cfg(tmp_path, enabled=False, MAX_ITER=8))
    assert trained(amp_cfg(tmp_path), resume=True).losses


class Overflow(nn.Module):
    """A model whose loss is finite and whose scaled gradient is not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, batch: list[dict[str, Any]]) -> torch.Tensor:
        return (self.weight * torch.tensor([1e30, 1.0])).sum()


def test_a_step_that_overflows_is_left_out_and_the_scale_shrinks() -> None:
    model = Overflow()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler = REAL("cpu", init_scale=2.0**40)
    step = TrainStep(model, [[{"file_name": "a.jpg"}]] * 2, optimizer, scaler)
    with EventStorage(0) as storage:
        step.run_step()
        assert "total_loss" in storage.latest()
    assert bool((model.weight == 1).all()) and scaler.get_scale() == 2.0**39
