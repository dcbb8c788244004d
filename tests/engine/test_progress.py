"""Progress in the console from the first step on; a warning names bfloat16 if it is slow here."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from panoptic_ext.engine import evaluate, progress
from panoptic_ext.engine.bfloat16_speed import slowdown_of_bfloat16, warn_if_bfloat16_is_slow
from panoptic_ext.engine.precision import bfloat16_on_cpu
from tests.engine.test_trainer import lines as rows_of
from tests.tiny.training import TinyTrainer, tiny_cfg


def trained(folder: Path, *, resume: bool = False, **solver: float) -> TinyTrainer:
    torch.manual_seed(3)
    trainer = TinyTrainer(tiny_cfg(folder, **solver))
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


@pytest.mark.parametrize("start", [0, 4])
def test_the_first_steps_tell_the_time_that_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, start: int
) -> None:
    if start:
        trained(tmp_path, MAX_ITER=start)
    caplog.clear()
    with caplog.at_level(logging.INFO, "panoptic_ext.engine.progress"):
        trained(tmp_path, resume=bool(start))
    lines = [r.getMessage() for r in caplog.records if r.name.endswith("progress")]
    assert len(lines) == 3
    assert lines[0] == (
        f"Results will lie in {tmp_path}: log.txt, checkpoints every 4 iterations, no evaluation, "
        "because DATASETS.TEST is empty"
    )
    assert re.match(r"The first iteration took \d+\.\d s", lines[1])
    assert re.fullmatch(
        rf"\d+\.\d\d s per iteration: about 0:0\d:\d\d for the {9 - start} that are left, .*",
        lines[2],
    )


def test_lines_come_by_time_and_rows_by_iterations(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(tmp_path / "fast", MAX_ITER=50)
    clock = [0.0]
    monkeypatch.setattr(progress, "now", lambda: clock[0])

    class Slow(TinyTrainer):
        def run_step(self) -> None:
            clock[0] += 6
            super().run_step()

    torch.manual_seed(3)
    trainer = Slow(tiny_cfg(tmp_path / "slow", MAX_ITER=50))
    trainer.resume_or_load(resume=False)
    with caplog.at_level(logging.INFO, "panoptic_ext.engine.progress"):
        trainer.train()
    lines = [r.getMessage() for r in caplog.records if " iterations (" in r.getMessage()]
    done = [int(line.split()[0]) for line in lines]
    # 5, 10, 20 and 30 seconds after the line or the row before; rows come after 20 and 40.
    assert done == [2, 5, 9, 14, 25, 30, 35, 45]
    assert re.fullmatch(
        r"9 of 50 iterations \(18 %\): total_loss \d.*, 6.00 s per iteration, about 0:04:06 left",
        lines[2],
    )
    assert rows_of(tmp_path / "slow") == rows_of(tmp_path / "fast")


def test_an_evaluation_of_slow_images_is_not_silent(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    class SlowModel(nn.Module):
        def forward(self, inputs: list[int]) -> list[int]:
            clock[0] += 3
            return inputs

    monkeypatch.setattr(evaluate, "perf_counter", lambda: clock[0])
    with caplog.at_level(logging.INFO, "panoptic_ext.engine.evaluate"):
        evaluate._run(SlowModel(), [[i] for i in range(30)], [])
    lines = [r.getMessage() for r in caplog.records if r.name.endswith("engine.evaluate")]
    assert lines[0] == "Evaluated 2 of 30 images, about 0:01:24 left"
    assert [int(line.split()[1]) for line in lines] == [2, 4, 6, 8, 10]


def test_slow_bfloat16_is_one_warning_that_says_what_is_faster(
    caplog: pytest.LogCaptureFixture,
) -> None:
    warn_if_bfloat16_is_slow([], slowdown=lambda: pytest.fail("nothing to measure"))
    warn_if_bfloat16_is_slow(["SOLVER.AMP"], slowdown=lambda: 0.4)
    assert not caplog.records
    warn_if_bfloat16_is_slow(["SOLVER.AMP", "TEST.AMP_DTYPE"], slowdown=lambda: 5.03)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "takes 5.0 times as long as in float32" in record.getMessage()
    assert "SOLVER.AMP.ENABLED False and TEST.AMP_DTYPE ''" in record.getMessage()


def test_only_bfloat16_on_the_cpu_is_measured(tmp_path: Path) -> None:
    cfg = tiny_cfg(tmp_path)
    assert bfloat16_on_cpu(cfg) == []
    cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE, cfg.TEST.AMP_DTYPE = True, "bfloat16", "bfloat16"
    assert bfloat16_on_cpu(cfg) == ["SOLVER.AMP", "TEST.AMP_DTYPE"]
    cfg.SOLVER.AMP.DTYPE = "float16"
    assert bfloat16_on_cpu(cfg) == ["TEST.AMP_DTYPE"]
    cfg.MODEL.DEVICE = "cuda"
    assert bfloat16_on_cpu(cfg) == []


def test_measuring_draws_no_number_of_the_training() -> None:
    before = torch.get_rng_state()
    assert 0 < slowdown_of_bfloat16() < 1000
    assert torch.equal(torch.get_rng_state(), before)
