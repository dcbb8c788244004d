"""The duration of a run is logged early, and a warning names bfloat16 if it is slow here."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch

from panoptic_ext.engine.bfloat16_speed import slowdown_of_bfloat16, warn_if_bfloat16_is_slow
from panoptic_ext.engine.precision import bfloat16_on_cpu
from tests.tiny.training import TinyTrainer, tiny_cfg


@pytest.mark.parametrize("start", [0, 4])
def test_the_first_steps_tell_the_time_that_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, start: int
) -> None:
    if start:
        first = TinyTrainer(tiny_cfg(tmp_path, MAX_ITER=start))
        first.resume_or_load(resume=False)
        first.train()
    trainer = TinyTrainer(tiny_cfg(tmp_path))
    trainer.resume_or_load(resume=bool(start))
    caplog.clear()
    with caplog.at_level(logging.INFO, "panoptic_ext.engine.first_steps"):
        trainer.train()
    lines = [r.getMessage() for r in caplog.records if r.name.endswith("first_steps")]
    assert len(lines) == 2 and re.match(r"The first iteration took \d+\.\d s", lines[0])
    assert re.fullmatch(
        rf"\d+\.\d\d s per iteration: about 0:0\d:\d\d for the {9 - start} that are left, .*",
        lines[1],
    )


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
