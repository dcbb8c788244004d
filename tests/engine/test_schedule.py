"""Learning rates of every iteration, beside the published formula and Detectron2's schedules."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.projects.deeplab.lr_scheduler import WarmupPolyLR
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from panoptic_ext.engine.layer_decay import BACKBONE_MARK
from panoptic_ext.engine.optimizer import build_lr_scheduler
from panoptic_ext.errors import ConfigError
from tests.tiny.training import tiny_cfg


def schedule_cfg(**keys: Any) -> CfgNode:
    cfg = tiny_cfg("", LR_SCHEDULER_NAME="WarmupPolyLR", WARMUP_FACTOR=0.0)
    for key, value in keys.items():
        cfg.SOLVER[key] = value
    return cfg


def two_groups() -> torch.optim.Optimizer:
    """Of others, initial rate 0.5, and of a backbone, initial rate 0.25."""
    others, backbone = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    return torch.optim.SGD(
        [{"params": [others], "lr": 0.5}, {"params": [backbone], "lr": 0.25, BACKBONE_MARK: True}]
    )


def rates_of(
    optimizer: torch.optim.Optimizer, scheduler: Any, iterations: int
) -> list[list[float]]:
    rates = []
    for _ in range(iterations):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


def all_rates(cfg: CfgNode, iterations: int | None = None) -> list[list[float]]:
    optimizer = two_groups()
    scheduler = build_lr_scheduler(cfg, optimizer)
    return rates_of(optimizer, scheduler, iterations or cfg.SOLVER.MAX_ITER)


def published(t: int, w1: int, w2: int, total: int) -> tuple[float, float]:
    """Factors of heads and encoder, as the published training of EoMT has them."""
    if t < w1:
        return t / w1, 0.0
    heads = (1 - (t - w1) / (total - w1)) ** 0.9
    if t < w1 + w2:
        return heads, (t - w1) / w2
    return heads, (1 - (t - w1 - w2) / (total - w1 - w2)) ** 0.9


@given(w1=st.integers(0, 20), w2=st.integers(1, 20), rest=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_the_two_warmups_are_the_published_ones(w1: int, w2: int, rest: int) -> None:
    total = w1 + w2 + rest
    cfg = schedule_cfg(WARMUP_ITERS=w1, BACKBONE_WARMUP_ITERS=w2, MAX_ITER=total)
    rates = all_rates(cfg, total + 1)
    for t, (others, backbone) in enumerate(rates):
        heads, encoder = published(t, w1, w2, total)
        assert others == pytest.approx(0.5 * heads, rel=1e-12, abs=0)
        assert backbone == pytest.approx(0.25 * encoder, rel=1e-12, abs=0)
    assert [backbone for _, backbone in rates[: w1 + 1]] == [0.0] * (w1 + 1)
    assert rates[w1][0] == 0.5 and rates[w1 + w2][1] == 0.25 and rates[total] == [0.0, 0.0]


def test_cosine_and_steps_with_two_warmups() -> None:
    keys = {"WARMUP_ITERS": 2, "BACKBONE_WARMUP_ITERS": 3, "MAX_ITER": 12, "STEPS": (4, 8)}
    cosine = all_rates(schedule_cfg(LR_SCHEDULER_NAME="WarmupCosineLR", **keys))
    steps = all_rates(schedule_cfg(LR_SCHEDULER_NAME="WarmupMultiStepLR", **keys))
    for t in range(12):
        warm = [min(t / 2, 1), min(max(t - 2, 0) / 3, 1)]
        ways = [max(t - 2, 0) / 10, max(t - 5, 0) / 7]
        curves = [0.5 * (1 + math.cos(math.pi * way)) for way in ways]
        # A step that falls into a warm-up counts from the warm-up's end on.
        gammas = [0.1 ** ((t >= 4) + (t >= 8)), 0.1 ** ((t >= 4) + (t >= 8)) if t >= 5 else 1]
        assert cosine[t] == pytest.approx(
            [0.5 * warm[0] * curves[0], 0.25 * warm[1] * curves[1]], rel=1e-12
        )
        assert steps[t] == pytest.approx(
            [0.5 * warm[0] * gammas[0], 0.25 * warm[1] * gammas[1]], rel=1e-12
        )


@given(warmup=st.integers(0, 20), rest=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_a_cosine_behind_one_warmup_is_the_published_pmts(warmup: int, rest: int) -> None:
    total = warmup + rest
    keys = {"WARMUP_ITERS": warmup, "BACKBONE_WARMUP_ITERS": 0, "MAX_ITER": total}
    cfg = schedule_cfg(LR_SCHEDULER_NAME="WarmupCosineLR", CURVE_AFTER_WARMUP=True, **keys)
    for t, (rate, _) in enumerate(all_rates(cfg, total)):
        if t < warmup:
            expected = t / warmup
        else:
            expected = (1 + math.cos(math.pi * (t - warmup) / rest)) / 2
        assert rate == pytest.approx(0.5 * expected, rel=1e-12)


def test_the_factor_and_method_of_warmups() -> None:
    keys = {"WARMUP_ITERS": 2, "BACKBONE_WARMUP_ITERS": 4, "MAX_ITER": 12, "WARMUP_FACTOR": 0.5}
    linear = [backbone for _, backbone in all_rates(schedule_cfg(**keys))]
    assert linear[:7] == pytest.approx([0, 0, 0.125, 0.15625, 0.1875, 0.21875, 0.25])
    constant = all_rates(schedule_cfg(WARMUP_METHOD="constant", **keys))
    assert [backbone for _, backbone in constant[:7]] == [0, 0, *[0.125] * 4, 0.25]
    assert [others for others, _ in constant[:3]] == [0.25, 0.25, 0.5]


@given(
    warmup=st.integers(0, 12),
    factor=st.floats(0, 1),
    method=st.sampled_from(["linear", "constant"]),
    power=st.floats(0.1, 3),
    ending=st.sampled_from([0.0, 0.05]),
)
@settings(max_examples=40, deadline=None)
def test_one_warmup_is_that_of_detectron2_bit_for_bit(
    warmup: int, factor: float, method: str, power: float, ending: float
) -> None:
    cfg = schedule_cfg(
        MAX_ITER=30, WARMUP_ITERS=warmup, WARMUP_FACTOR=factor, WARMUP_METHOD=method,
        POLY_LR_POWER=power, POLY_LR_CONSTANT_ENDING=ending,
    )  # fmt: skip
    optimizer = two_groups()
    theirs = WarmupPolyLR(optimizer, 30, factor, warmup, method, -1, power, ending)
    assert all_rates(cfg) == rates_of(optimizer, theirs, 30)


def test_a_state_of_detectron2s_schedule_goes_on() -> None:
    """Checkpoints of earlier versions hold such a state."""
    cfg = schedule_cfg(MAX_ITER=12)
    earlier = two_groups()
    theirs = WarmupPolyLR(earlier, 12, 0.0, cfg.SOLVER.WARMUP_ITERS)
    rates_of(earlier, theirs, 5)
    optimizer = two_groups()
    scheduler = build_lr_scheduler(cfg, optimizer)
    scheduler.load_state_dict(theirs.state_dict())
    assert rates_of(optimizer, scheduler, 7) == all_rates(cfg)[5:]


@pytest.mark.parametrize("second", [0, 3])
def test_a_longer_run_has_the_rates_of_its_own_length(second: int) -> None:
    optimizer = two_groups()
    scheduler = build_lr_scheduler(
        schedule_cfg(MAX_ITER=8, BACKBONE_WARMUP_ITERS=second), optimizer
    )
    rates_of(optimizer, scheduler, 8)
    longer = schedule_cfg(MAX_ITER=20, BACKBONE_WARMUP_ITERS=second)
    optimizer = two_groups()
    again = build_lr_scheduler(longer, optimizer)
    again.load_state_dict(scheduler.state_dict())
    assert rates_of(optimizer, again, 12) == all_rates(longer)[8:]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"BACKBONE_WARMUP_ITERS": 10},
            r"WARMUP_ITERS 2 and BACKBONE_WARMUP_ITERS 10 are 12 iterations, expected less than "
            r"SOLVER.MAX_ITER 12",
        ),
        ({"BACKBONE_WARMUP_ITERS": -1}, r"BACKBONE_WARMUP_ITERS = -1, expected at least 0"),
        (
            {"BACKBONE_WARMUP_ITERS": 3, "LR_SCHEDULER_NAME": "WarmupPoly"},
            "unknown SOLVER.LR_SCHEDULER_NAME 'WarmupPoly'; did you mean 'WarmupPolyLR'",
        ),
        (
            {"BACKBONE_WARMUP_ITERS": 3, "LR_SCHEDULER_NAME": "WarmupMultiStepLR", "STEPS": (5, 4)},
            r"SOLVER.STEPS = \(5, 4\), expected increasing",
        ),
        ({"WARMUP_METHOD": "cubic"}, "unknown SOLVER.WARMUP_METHOD 'cubic'"),
    ],
)
def test_values_that_make_no_schedule_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_lr_scheduler(schedule_cfg(**keys), two_groups())


def test_a_second_warmup_without_a_backbone_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    optimizer = two_groups()
    del optimizer.param_groups[1]
    build_lr_scheduler(schedule_cfg(BACKBONE_WARMUP_ITERS=3), optimizer)
    assert "no parameter of a backbone is trained" in caplog.text
