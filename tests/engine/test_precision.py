"""Mixed precision: what SOLVER.AMP and TEST.AMP_DTYPE turn on, where, and what falls back."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils.env import seed_all_rng
from torch import nn

from panoptic_ext.engine import Trainer, load_cfg
from panoptic_ext.engine import device as device_choice
from panoptic_ext.engine.device import choose_device
from panoptic_ext.engine.precision import (
    Precision,
    build_grad_scaler,
    check_precision,
    evaluation_precision,
    training_precision,
)
from panoptic_ext.errors import ConfigError
from panoptic_ext.prediction.predictor import Predictor
from tests import ROOT
from tests.tiny.model_inputs import NARROW_RESNET
from tests.tiny.training import TinyTrainer, tiny_cfg


def amp_cfg(folder: Path, dtype: str = "bfloat16", test: str = "", **solver: Any) -> CfgNode:
    cfg = tiny_cfg(folder, **solver)
    cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE, cfg.TEST.AMP_DTYPE = True, dtype, test
    return cfg


class Spy(nn.Module):
    """Records the dtype of autocast at each call; None outside of autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.seen: list[torch.dtype | None] = []

    def forward(self, batch: list[dict[str, Any]]) -> Any:
        on = torch.is_autocast_enabled("cpu")
        self.seen.append(torch.get_autocast_dtype("cpu") if on else None)
        return {"loss": self.weight.sum()} if self.training else [{} for _ in batch]


class SpyTrainer(TinyTrainer):
    """Trains and evaluates a Spy."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return Spy()

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return [[{"file_name": "a.jpg"}]] * 2

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return []

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> Any:
        return Trainer.test.__func__(cls, cfg, model, evaluators)


def seen_in(cfg: CfgNode) -> list[torch.dtype | None]:
    cfg.DATASETS.TEST = ("any",)
    trainer = SpyTrainer(cfg)
    trainer.train()
    return trainer.model.seen


@pytest.mark.parametrize("test", ["", "bfloat16"])
@pytest.mark.parametrize("train", [False, True])
def test_training_and_evaluation_each_by_its_key(tmp_path: Path, train: bool, test: str) -> None:
    cfg = amp_cfg(tmp_path, test=test, MAX_ITER=2)
    cfg.SOLVER.AMP.ENABLED = train
    in_training = torch.bfloat16 if train else None
    in_evaluation = torch.bfloat16 if test else None
    assert seen_in(cfg) == [in_training] * 2 + [in_evaluation] * 2
    assert not torch.is_autocast_enabled("cpu")


def test_float16_without_cuda_is_full_precision(tmp_path: Path) -> None:
    cfg = amp_cfg(tmp_path, "float16", "float16")
    assert training_precision(cfg) == evaluation_precision(cfg) == Precision("cpu", None)


def test_float16_alone_has_a_scaler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device: made.append(device) or device)
    cfg = amp_cfg(tmp_path)
    cfg.MODEL.DEVICE = "cuda:1"
    assert build_grad_scaler(cfg) is None
    assert training_precision(cfg) == Precision("cuda", torch.bfloat16)
    cfg.SOLVER.AMP.DTYPE = "float16"
    assert build_grad_scaler(cfg) == "cuda"
    assert training_precision(cfg) == Precision("cuda", torch.float16)
    cfg.SOLVER.AMP.ENABLED = False
    assert build_grad_scaler(cfg) is None and made == ["cuda"]


@pytest.mark.parametrize(
    ("device", "dtype", "warnings"),
    [
        ("cpu", "float16", [r"float16 (SOLVER.AMP, TEST.AMP_DTYPE) is for CUDA: running in full"]),
        ("cpu", "bfloat16", []),
        ("cuda", "float16", ["running on the CPU instead, in full precision and much slower"]),
        ("cuda", "bfloat16", ["running on the CPU instead, much slower"]),
    ],
)
def test_a_fallback_to_another_precision_is_one_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    device: str,
    dtype: str,
    warnings: list[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # It warns on processors without bfloat16 instructions.
    monkeypatch.setattr(device_choice, "warn_if_bfloat16_is_slow", lambda keys: None)
    monkeypatch.setattr(logging.getLogger("panoptic_ext"), "propagate", True)
    cfg = amp_cfg(tmp_path, dtype, dtype)
    cfg.MODEL.DEVICE = device
    cfg.freeze()
    for _ in range(2):
        choose_device(cfg)
    messages = [r.message for r in caplog.records]
    assert len(messages) == len(warnings)
    assert all(wanted in m for wanted, m in zip(warnings, messages, strict=True))
    kept = dtype == "bfloat16"
    assert cfg.MODEL.DEVICE == "cpu" and cfg.SOLVER.AMP.ENABLED is kept
    assert cfg.TEST.AMP_DTYPE in ([dtype] if kept else [""]) and cfg.is_frozen()


def test_unknown_types(tmp_path: Path) -> None:
    cfg = amp_cfg(tmp_path, "bflaot16")
    with pytest.raises(ConfigError, match=r"SOLVER\.AMP\.DTYPE 'bflaot16'.*mean 'bfloat16'"):
        check_precision(cfg)
    cfg = amp_cfg(tmp_path, test="float32")
    with pytest.raises(ConfigError, match=r"TEST\.AMP_DTYPE 'float32'; .*known: '', float16"):
        check_precision(cfg)
    with pytest.raises(ConfigError, match=r"SOLVER\.AMP\.DTYPE"):
        load_cfg("", ["SOLVER.AMP.DTYPE", "half"])
    check_precision(amp_cfg(tmp_path, test="bfloat16"))


def trained(cfg: CfgNode, *, resume: bool = False) -> TinyTrainer:
    torch.manual_seed(cfg.SEED)
    trainer = TinyTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def test_bfloat16_resumes_exactly_and_is_not_float32(tmp_path: Path) -> None:
    whole = trained(amp_cfg(tmp_path / "whole"))
    trained(amp_cfg(tmp_path / "parts", MAX_ITER=8))
    second = trained(amp_cfg(tmp_path / "parts"), resume=True)
    assert second.start_iter == 8 and second.losses == whole.losses[8:]
    assert whole._trainer.grad_scaler is None
    assert all(p.dtype == torch.float32 for p in whole.model.parameters())
    full = trained(tiny_cfg(tmp_path / "full"))
    assert full.losses != whole.losses
    np.testing.assert_allclose(full.losses, whole.losses, rtol=0.05)


def test_predictor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = amp_cfg(tmp_path, test="bfloat16")
    spy = Spy()
    monkeypatch.setattr("panoptic_ext.prediction.predictor.build_model", lambda cfg: spy)
    path = tmp_path / "spy.pth"
    torch.save({"model": spy.state_dict()}, path)
    cfg.DATASETS.TEST = ("any",)
    Predictor(cfg, weights=str(path))(np.zeros((8, 8, 3), np.uint8))
    cfg.TEST.AMP_DTYPE = ""
    Predictor(cfg, weights=str(path))(np.zeros((8, 8, 3), np.uint8))
    assert spy.seen == [torch.bfloat16, None]
    assert "any" not in DatasetCatalog.list()


SMALL = [
    *("SEED", "1", "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2"),
    *("SOLVER.WARMUP_ITERS", "2", "SOLVER.MAX_ITER", "6", "SOLVER.CHECKPOINT_PERIOD", "3"),
    *("DATASETS.SHAPES.NUM_TRAIN", "6", "DATASETS.SHAPES.NUM_VAL", "2"),
    *("DATASETS.SHAPES.IMAGE_SIZE", "[64,64]", "TEST.EVAL_PERIOD", "0"),
    *("INPUT.MIN_SIZE_TRAIN", "[64]", "INPUT.MIN_SIZE_TEST", "64", "SOLVER.AMP.ENABLED", "True"),
    *(str(item) for pair in NARROW_RESNET.items() for item in pair),
]
MODELS = {
    "mask2former/mask2former_R18_shapes": [
        *("MODEL.MASK_FORMER.DEC_LAYERS", "3", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "10"),
        *("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "256"),
    ],
    "panoptic_fpn/panoptic_fpn_R18_shapes": ["MODEL.FPN.OUT_CHANNELS", "32"],
}


class Interrupted(Exception):
    """Replaces the end of a process."""


class Run(Trainer):
    """Records the losses of each step, and dies after a given one."""

    def __init__(self, cfg: CfgNode, die_after: int = -1) -> None:
        super().__init__(cfg)
        self.die_after = die_after
        self.losses: list[dict[str, float]] = []

    def after_step(self) -> None:
        latest = self.storage.latest()
        self.losses.append({k: v for k, (v, _) in latest.items() if "loss" in k})
        super().after_step()
        if self.iter == self.die_after:
            raise Interrupted


def train(
    folder: Path, model: str, dtype: str, device: str, *opts: str, die_after: int = -1
) -> Run:
    """Train from the last checkpoint in `folder` on, and evaluate."""
    path = ROOT / "configs" / "shapes" / f"{model}.yaml"
    cache = folder.parent / "cache"
    keys = [*SMALL, *MODELS[model], "MODEL.DEVICE", device, "SOLVER.AMP.DTYPE", dtype]
    keys += ["OUTPUT_DIR", str(folder), "DATASETS.SHAPES.CACHE", str(cache)]
    cfg = load_cfg(str(path), [*keys, "TEST.AMP_DTYPE", dtype, *opts])
    seed_all_rng(cfg.SEED)
    trainer = Run(cfg, die_after)
    trainer.resume_or_load(resume=True)
    if die_after >= 0:
        with pytest.raises(Interrupted):
            trainer.train()
    else:
        trainer.train()
    assert all(math.isfinite(v) for losses in trainer.losses for v in losses.values())
    return trainer


def panoptic_quality(trainer: Run) -> float:
    folder = Path(trainer.cfg.OUTPUT_DIR) / "inference" / "shapes_panoptic_val"
    return json.loads((folder / "results.json").read_text())["panoptic_seg"]["PQ"]


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_models_train_and_resume_in_bfloat16_on_a_cpu(model: str, tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", model, "bfloat16", "cpu")
    train(tmp_path / "parts", model, "bfloat16", "cpu", die_after=2)
    second = train(tmp_path / "parts", model, "bfloat16", "cpu")
    assert second.start_iter == 3 and second.losses == whole.losses[3:]
    one_step = ("SOLVER.AMP.ENABLED", "False", "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "[]")
    full = train(tmp_path / "full", model, "bfloat16", "cpu", *one_step)
    mixed, exact = (run.losses[0]["total_loss"] for run in (whole, full))
    assert mixed != exact and math.isclose(mixed, exact, rel_tol=0.05)
    assert math.isfinite(panoptic_quality(whole))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("model", MODELS)
def test_models_train_and_resume_on_a_gpu(model: str, dtype: str, tmp_path: Path, gpu: str) -> None:
    if dtype == "float16" and gpu == "cpu":
        pytest.skip("float16 is for CUDA")
    train(tmp_path / "run", model, dtype, gpu, die_after=2)
    second = train(tmp_path / "run", model, dtype, gpu)
    assert second.start_iter == 3
    assert (second._trainer.grad_scaler is not None) == (dtype == "float16")
    assert math.isfinite(panoptic_quality(second))
