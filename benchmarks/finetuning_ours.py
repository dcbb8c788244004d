"""The fine-tuning recipes of this package as sides of benchmarks/finetuning.py."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detectron2.engine.hooks import HookBase

from panoptic_ext.commands import train as command
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.engine.trainer import Trainer

__all__ = ["MODELS", "config_file", "train"]

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("panoptic_fpn", "efficientps", "mask2former")

# Random weights need batch norms that learn, from the first layer on and at the full rate.
RANDOM_WEIGHTS = [
    *("MODEL.WEIGHTS", ""),
    *("MODEL.TIMM.NORM", ""),
    *("MODEL.FREEZE", "[]"),
    *("MODEL.BACKBONE.FREEZE", "0"),
    *("MODEL.BACKBONE.FREEZE_NORMS", "False"),
    *("SOLVER.BACKBONE_MULTIPLIER", "1.0"),
]


def config_file(model: str, data: str) -> str:
    """The recipe of a model on a data set."""
    return str(ROOT / f"configs/{data}/{model}/{model}_efficientnet_lite0_{data}.yaml")


class StepHook(HookBase):
    """Calls a function after every step."""

    def __init__(self, on_step: Callable[[], None]) -> None:
        self._on_step = on_step

    def after_step(self) -> None:
        self._on_step()


def train(
    config: str,
    folder: Path,
    iterations: int,
    *,
    pretrained: bool = True,
    seed: int = 1,
    options: Sequence[str] = (),
    on_step: Callable[[], None] | None = None,
) -> None:
    """Run `panoptic-ext train --resume`: train, or go on with a training that was stopped.

    Args:
        config: YAML file of the recipe; its schedule is fitted to `iterations`.
        folder: of the run.
        iterations: of the whole training.
        pretrained: False begins with random weights, whose norms learn too.
        seed: of weights and data.
        options: KEY VALUE ... pairs.
        on_step: called after every step.
    """
    keys = [*options, *([] if pretrained else RANDOM_WEIGHTS), *fitted(config, iterations)]
    keys += ["OUTPUT_DIR", str(folder), "SEED", str(seed), "MODEL.DEVICE", "cpu"]
    argv = ["--config-file", config, "--resume", *keys]
    build_hooks = Trainer.build_hooks

    def with_step(trainer: Trainer) -> list[Any]:
        return [*build_hooks(trainer), StepHook(on_step) if on_step else None]

    # The command makes its trainer itself.
    with mock.patch.object(Trainer, "build_hooks", with_step):
        status = command.main(argv)
    if status:
        raise SystemExit(status)


def fitted(config: str, iterations: int) -> list[str]:
    """Keys that fit a recipe's schedule to a number of iterations, and train on one thread."""
    solver = load_cfg(config, use_data=False).SOLVER
    steps = [round(step * iterations / solver.MAX_ITER) for step in solver.STEPS]
    values = {
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.STEPS": steps,
        "SOLVER.WARMUP_ITERS": min(solver.WARMUP_ITERS, iterations // 10),
        "SOLVER.CHECKPOINT_PERIOD": 50,
        "TEST.EVAL_PERIOD": max(1, -(-iterations // 4)),
        "TEST.EVALUATORS": ["panoptic"],
        "DATALOADER.NUM_WORKERS": 0,
    }
    return [text for key, value in values.items() for text in (key, str(value))]
