"""Time of a training step by parts, against the plain way, in one process.

    OMP_NUM_THREADS=1 python benchmarks/training_step.py [--rounds 5] [--cpu-time]
        --config-file CONFIG [KEY VALUE ...]

The plain way is the same model in NCHW layout (MODEL.CHANNELS_LAST False), with norms as layers of
their own, and without what MODEL.BACKBONE.FREEZE, FREEZE_NORMS and MODEL.FREEZE freeze. Both sides
have the same weights and take turns on the same batches of the config's data set, so that other
work on the machine slows both; medians are printed. "data" is what a data worker does for a batch,
"the rest" of the forward pass are preprocessing, targets and losses. `--cpu-time` counts processor
time, which other work on the machine changes less (with one thread).

`ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2` in front emulates a processor without AVX-512.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from panoptic_ext.engine.build_model import build_model
from panoptic_ext.engine.loader import build_train_loader
from panoptic_ext.engine.optimizer import build_optimizer
from panoptic_ext.engine.run_config import load_cfg

PLAIN = (
    *("MODEL.CHANNELS_LAST", "False", "MODEL.BACKBONE.FREEZE", "0"),
    *("MODEL.BACKBONE.FREEZE_NORMS", "False", "MODEL.FREEZE", "[]"),
)
FOLDING = (
    "panoptic_ext.modeling.backbone.timm_norm.fold_frozen_norms",
    "panoptic_ext.modeling.meta_arch.mask_former.fold_norms",
    "panoptic_ext.modeling.meta_arch.panoptic_fpn.fold_norms",
    "panoptic_ext.modeling.meta_arch.efficientps.fold_norms",
)
TOTAL = "whole step"
CLOCK = time.process_time if "--cpu-time" in sys.argv else time.perf_counter


class Side:
    """A model, its optimizer, and the times of its steps by part.

    Attributes:
        times: seconds of each step, by part.
    """

    def __init__(self, cfg: CfgNode) -> None:
        torch.manual_seed(0)
        self.model = build_model(cfg).train()
        self.optimizer = build_optimizer(cfg, self.model)
        self.times: dict[str, list[float]] = {}
        self._starts: dict[str, float] = {}
        self._step: dict[str, float] = {}
        for name, module in self.model.named_children():
            module.register_forward_pre_hook(lambda *_, part=name: self._start(part))
            module.register_forward_hook(lambda *_, part=name: self._stop(part))

    def step(self, batch: list[dict[str, Any]]) -> None:
        """One step; its times are kept."""
        self._step = {}
        self._start(TOTAL)
        self._start("forward")
        with EventStorage():
            total = sum(self.model(batch).values())
        self._stop("forward")
        within = sum(self._step.values()) - self._step["forward"]
        self._step["the rest"] = self._step.pop("forward") - within
        for name, work in (
            ("backward", lambda: (self.optimizer.zero_grad(), total.backward())),
            ("optimizer", self.optimizer.step),
        ):
            self._start(name)
            work()
            self._stop(name)
        self._stop(TOTAL)
        for part, seconds in self._step.items():
            self.times.setdefault(part, []).append(seconds)

    def _start(self, part: str) -> None:
        self._starts[part] = CLOCK()

    def _stop(self, part: str) -> None:
        seconds = CLOCK() - self._starts[part]
        self._step[part] = self._step.get(part, 0.0) + seconds


def plain_side(cfg: CfgNode) -> Side:
    """The model whose norms are layers of their own."""
    with ExitStack() as stack:
        for name in FOLDING:
            stack.enter_context(mock.patch(name, lambda module: module))
        return Side(cfg)


def batches_of(cfg: CfgNode, number: int) -> tuple[list[list[dict[str, Any]]], float]:
    """The first batches of the training, and the seconds for one of them."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS, cfg.SEED = 0, 1
    stream = iter(build_train_loader(cfg))
    next(stream)  # the first one waits for the data set
    start = CLOCK()
    batches = [next(stream) for _ in range(number)]
    return batches, (CLOCK() - start) / number


def table(plain: Side, ours: Side, data: float) -> str:
    """Parts, milliseconds of both sides and their ratio."""
    rows: list[tuple[str, float, float]] = [("data (a worker)", data, data)]
    for part in ours.times:
        medians = [statistics.median(side.times[part][1:]) for side in (plain, ours)]
        rows.append((part, medians[0], medians[1]))
    cells = [(name, f"{a * 1e3:.0f}", f"{b * 1e3:.0f}", f"{b / a:.2f}") for name, a, b in rows]
    headers = ("part", "plain, ms", "now, ms", "ratio")
    return tabulate(cells, headers, tablefmt="github", disable_numparse=True)


def main() -> None:
    """Time both sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--rounds", type=int, default=5, help="steps of each side, after the first")
    parser.add_argument("--cpu-time", action="store_true", help="count processor time")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    args = parser.parse_args()
    cfg, plain_cfg = (
        load_cfg(args.config_file, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *args.opts, *more])
        for more in ((), PLAIN)
    )
    batches, data = batches_of(cfg, args.rounds + 1)
    plain, ours = plain_side(plain_cfg), Side(cfg)
    weights: nn.Module = plain.model
    ours.model.load_state_dict(weights.state_dict())
    for batch in batches:
        plain.step(batch)
        ours.step(batch)
    isa = torch.backends.cpu.get_cpu_capability()
    print(f"{Path(args.config_file).stem}, {torch.get_num_threads()} threads, {isa}\n")
    print(table(plain, ours, data))


if __name__ == "__main__":
    main()
