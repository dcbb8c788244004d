"""A training to a time budget ends in time, passes its whole schedule, and resumes exactly."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from panoptic_ext.engine import evaluation_time, time_budget
from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.engine.optimizer import build_lr_scheduler
from panoptic_ext.engine.stretched_schedule import build_timeline, stretched
from panoptic_ext.engine.time_budget import TimeBudgetHook
from panoptic_ext.errors import ConfigError
from tests.tiny.training import TinyTrainer, tiny_cfg, tiny_mapper, tiny_records


class Clock:
    """A clock that moves by what the steps, evaluations and checkpoints of a test take."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time_budget, "now", clock)
    monkeypatch.setattr(evaluation_time, "now", clock)
    return clock


class SlowLoader:
    """Ten batches, each of which takes the same time."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds

    def __len__(self) -> int:
        return 10

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for record in tiny_records(10):
            self.clock.seconds += self.seconds
            yield [tiny_mapper(record)]


class TimedTrainer(TinyTrainer):
    """Steps take `step_seconds(iteration)`, checkpoints 1 s, evaluations as `trainer_of` says."""

    clock: Clock
    evaluated: list[int]  # iterations that were done when an evaluation ran
    rates: list[float]

    def run_step(self) -> None:
        self.clock.seconds += self.step_seconds(self.iter)
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        super().run_step()
        if self.iter == self.stop_at:
            raise KeyboardInterrupt

    def save_checkpoint(self, name: str) -> None:
        self.clock.seconds += 1
        super().save_checkpoint(name)

    def step_seconds(self, iteration: int) -> float:
        return 15.0 if iteration == self.start_iter else 6.0

    stop_at = -1


def trainer_of(
    clock: Clock,
    folder: Path,
    *,
    minutes: float = 10.0,
    resume: bool = False,
    evaluation: float = 40.0,
    **solver: Any,
) -> TimedTrainer:
    values = {"MAX_ITER": 60, "CHECKPOINT_PERIOD": 15, "TIME_BUDGET": minutes, **solver}
    cfg = tiny_cfg(folder, **values)
    cfg.SOLVER.WARMUP_ITERS = 6
    cfg.SOLVER.STEPS = (36, 48)
    cfg.TEST.EVAL_PERIOD = 30
    cfg.DATASETS.TEST = ("ten_images",)
    torch.manual_seed(cfg.SEED)

    evaluated: list[int] = []
    rates: list[float] = []

    class Timed(TimedTrainer):
        @classmethod
        def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
            return SlowLoader(clock, evaluation / 12)

        @classmethod
        def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
            clock.seconds += evaluation
            evaluated.append(len(rates))
            return {}

    trainer = Timed(cfg)
    trainer.clock, trainer.evaluated, trainer.rates = clock, evaluated, rates
    trainer.resume_or_load(resume=resume)
    return trainer


def expected_rates(cfg: CfgNode, positions: list[float]) -> list[float]:
    """The config's schedule at the positions, by the schedule itself."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=cfg.SOLVER.BASE_LR)
    schedule = build_lr_scheduler(cfg, optimizer)
    rates = []
    for position in positions:
        schedule.last_epoch = position
        rates.append(schedule.get_lr()[0])
    return rates


@pytest.mark.parametrize("name", ["WarmupMultiStepLR", "WarmupCosineLR", "WarmupPolyLR"])
def test_a_schedule_is_passed_at_another_speed_and_never_jumps(tmp_path: Path, name: str) -> None:
    cfg = tiny_cfg(tmp_path, MAX_ITER=60, LR_SCHEDULER_NAME=name, TIME_BUDGET=1.0)
    cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.STEPS = 6, (36, 48)
    timeline = build_timeline(cfg)
    assert timeline is not None and timeline.position(3) <= 0.6  # a hundredth before it is planned
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    schedule = stretched(build_lr_scheduler(cfg, optimizer), timeline)
    plans, rates = {3: 120, 40: 90, 80: 100}, []
    for iteration in range(100):
        if iteration in plans:
            timeline.turn(iteration, plans[iteration])
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    positions = [timeline.position(i) for i in range(101)]
    assert positions == sorted(positions) and positions[-1] == 60
    # The rate of an iteration was set before it, by the plan of that time.
    assert rates == pytest.approx(expected_rates(cfg, positions[:-1]))
    assert max(b - a for a, b in pairwise(positions)) < 1.2


def test_a_schedule_of_another_kind_is_refused(tmp_path: Path) -> None:
    cfg = tiny_cfg(tmp_path, TIME_BUDGET=1.0)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1)
    other = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    with pytest.raises(ConfigError, match="found StepLR; set it to 0"):
        stretched(other, build_timeline(cfg))


def test_the_schedule_ends_with_the_budget(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_of(clock, tmp_path)
    caplog.set_level(logging.INFO, "panoptic_ext.engine.time_budget")
    trainer.train()
    assert clock.seconds - 100 == pytest.approx(600, rel=0.03)
    num, timeline = len(trainer.rates), trainer._timeline
    positions = [timeline.position(i) for i in range(num + 1)]
    assert positions == sorted(positions) and (positions[0], positions[-1]) == (0, 60)
    assert trainer.rates == pytest.approx(expected_rates(trainer.cfg, positions[:-1]))
    assert [timeline.position(at) for at in trainer.evaluated] == pytest.approx([30, 60], abs=1)
    assert trainer.max_iter == num and (tmp_path / "model_final.pth").exists()
    lines = [r.getMessage() for r in caplog.records if r.name.endswith("time_budget")]
    assert re.fullmatch(
        r"SOLVER.TIME_BUDGET: 6 s per iteration, 0.[456] of 10 minutes used, 1.3 kept for "
        r"evaluations and checkpoints: \d+ iterations in all, which pass the schedule of 60",
        lines[0],
    )
    assert lines[-1].endswith("of 10 minutes; the last evaluation follows")
    saved = Checkpointer(nn.Identity(), str(tmp_path))._load_file(str(tmp_path / "model_final.pth"))
    state = saved["trainer"]["hooks"][TimeBudgetHook.__name__]
    assert state["budget"] == 600 and state["times"]["steps"] == [6.0] * 10
    assert state["times"]["evaluation"] == pytest.approx(41)
    assert state["used"] == pytest.approx(560, abs=12)


def test_checkpoints_of_a_short_budget_take_little_of_it(tmp_path: Path, clock: Clock) -> None:
    """Periods are shares of the schedule: here a checkpoint of 1 s after each step of 0.5 s."""
    trainer = trainer_of(clock, tmp_path, minutes=2, evaluation=4, CHECKPOINT_PERIOD=1)
    trainer.step_seconds = lambda _: 0.5
    saved: list[float] = []
    save = trainer.save_checkpoint
    trainer.save_checkpoint = lambda name: (saved.append(clock.seconds), save(name))
    trainer.train()
    assert clock.seconds - 100 == pytest.approx(120, rel=0.03)
    assert len(saved) == 4 and len(trainer.rates) > 200
    assert all(30 < b - a < 40 for a, b in pairwise([100, *saved[:-1]]))
    began = clock.seconds
    again = trainer_of(clock, tmp_path, minutes=4, evaluation=4, CHECKPOINT_PERIOD=1, resume=True)
    again.step_seconds, saved[:] = (lambda _: 0.5), []
    save = again.save_checkpoint
    again.save_checkpoint = lambda name: (saved.append(clock.seconds), save(name))
    again.train()
    assert all(30 < b - a < 45 for a, b in pairwise([began, *saved[:-1]]))


def test_a_machine_that_becomes_slow_trains_fewer_iterations(tmp_path: Path, clock: Clock) -> None:
    trainer = trainer_of(clock, tmp_path)
    trainer.step_seconds = lambda i: 3.0 if i < 60 else 9.0
    trainer.train()
    assert clock.seconds - 100 == pytest.approx(600, rel=0.05)
    assert 80 < len(trainer.rates) < 110
    assert trainer.rates[-1] == pytest.approx(0.0001, rel=1e-3)  # after both STEPS
    falls = [after / before < 0.5 for before, after in pairwise(trainer.rates)]
    assert sum(falls) == 2  # the rate falls at STEPS alone


def test_a_machine_that_slept_ends_in_time(tmp_path: Path, clock: Clock) -> None:
    trainer = trainer_of(clock, tmp_path)
    trainer.step_seconds = lambda i: 200.0 if i == 5 else 6.0
    trainer.train()
    assert clock.seconds - 100 == pytest.approx(600, rel=0.03)
    assert trainer.rates[-1] == pytest.approx(0.0001, rel=1e-3)


def test_a_resumed_run_equals_a_whole_one(tmp_path: Path, clock: Clock) -> None:
    whole = trainer_of(clock, tmp_path / "whole")
    whole.train()
    first = trainer_of(clock, tmp_path / "parts")
    first.stop_at = 30
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = trainer_of(clock, tmp_path / "parts", resume=True)
    second.step_seconds = lambda _: 6.0
    assert 0 < second.start_iter <= 30
    second.train()
    assert second.losses == whole.losses[second.start_iter :]
    assert second.rates == whole.rates[second.start_iter :]
    state, expected = second.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(state[k], expected[k]) for k in expected)


def test_a_larger_budget_goes_on_where_its_schedule_is(tmp_path: Path, clock: Clock) -> None:
    trainer_of(clock, tmp_path).train()
    began = clock.seconds
    longer = trainer_of(clock, tmp_path, minutes=20, resume=True)
    longer.train()
    assert clock.seconds - began == pytest.approx(640, rel=0.03)  # the last evaluation again
    # Half of the budget is used, and so half of the schedule is passed: no step of it.
    assert longer.rates[0] == pytest.approx(0.01) and longer.rates[-1] == pytest.approx(0.0001)
    again = trainer_of(clock, tmp_path, minutes=20, resume=True)
    began = clock.seconds
    again.train()
    assert again.rates == [] and clock.seconds - began == pytest.approx(40)


def test_workers_agree_on_the_rest_of_another_budget(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each measures another time of an evaluation; with other ends they would wait forever."""
    first = trainer_of(clock, tmp_path)
    first.stop_at = 30
    with pytest.raises(KeyboardInterrupt):
        first.train()
    workers = [
        trainer_of(clock, tmp_path, minutes=20, resume=True, evaluation=seconds)
        for seconds in (40.0, 90.0)
    ]
    gathered: list[int] = []
    monkeypatch.setattr(comm, "all_gather", lambda own: gathered.append(own) or gathered)
    for rank, trainer in enumerate(workers):
        monkeypatch.setattr(comm, "is_main_process", lambda rank=rank: rank == 0)
        (hook,) = (h for h in trainer._hooks if isinstance(h, TimeBudgetHook))
        hook._times.evaluation = None  # of a run that had no test set
        hook.before_train()
    assert len(gathered) == 2 and workers[0].max_iter == workers[1].max_iter == gathered[0]


def test_a_budget_for_a_run_that_had_none(tmp_path: Path, clock: Clock) -> None:
    trainer = trainer_of(clock, tmp_path, minutes=0)
    trainer.stop_at = 33
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    began = clock.seconds
    second = trainer_of(clock, tmp_path, minutes=5, resume=True)
    second.train()
    assert second.start_iter == 30
    assert clock.seconds - began == pytest.approx(300, rel=0.05)
    assert second.rates[0] == pytest.approx(0.01) and second.rates[-1] == pytest.approx(0.0001)
    with pytest.raises(ConfigError, match="has nothing to fill"):
        trainer_of(clock, tmp_path / "done", minutes=0, MAX_ITER=4).train()
        trainer_of(clock, tmp_path / "done", MAX_ITER=4, resume=True).train()


def test_a_budget_of_a_few_steps(tmp_path: Path, clock: Clock) -> None:
    trainer = trainer_of(clock, tmp_path, minutes=0.01, MAX_ITER=2)
    trainer.train()
    assert len(trainer.rates) == 4  # three to measure, one to end
