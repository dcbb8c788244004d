"""Learning rate and weight decay of each parameter, clipping, schedules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from panoptic_ext.engine.optimizer import build_lr_scheduler, build_optimizer, param_groups
from panoptic_ext.errors import ConfigError
from tests.tiny.training import PanopticExtTestTiny, tiny_cfg


def test_each_parameter_in_its_group() -> None:
    model = PanopticExtTestTiny()
    groups = param_groups(
        model,
        base_lr=1.0,
        weight_decay=0.1,
        weight_decay_norm=0.2,
        weight_decay_bias=0.3,
        weight_decay_embed=0.4,
        backbone_multiplier=0.5,
    )
    got = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert {name: got[id(p)] for name, p in model.named_parameters()} == {
        "backbone.weight": (0.5, 0.1),
        "backbone.bias": (0.5, 0.3),
        "norm.weight": (1.0, 0.2),
        "norm.bias": (1.0, 0.3),
        "query.weight": (1.0, 0.4),
        "head.weight": (1.0, 0.1),
        "head.bias": (1.0, 0.3),
    }
    assert sum(len(g["params"]) for g in groups) == len(got) and len(groups) == 6


def test_defaults_are_one_group_and_frozen_ones_are_left_out() -> None:
    model = PanopticExtTestTiny()
    model.head.requires_grad_(False)
    (group,) = param_groups(model, base_lr=1.0, weight_decay=0.1)
    assert len(group["params"]) == 5


@pytest.mark.parametrize("name", ["SGD", "ADAMW", "AdamW"])
def test_optimizers(tmp_path: Path, name: str) -> None:
    optimizer = build_optimizer(tiny_cfg(tmp_path, OPTIMIZER=name), PanopticExtTestTiny())
    assert type(optimizer) is (torch.optim.SGD if name == "SGD" else torch.optim.AdamW)


@pytest.mark.parametrize("kind", ["full_model", "norm", "value"])
def test_clipping(tmp_path: Path, kind: str) -> None:
    cfg = tiny_cfg(tmp_path, BASE_LR=1.0, MOMENTUM=0.0, WEIGHT_DECAY=0.0)
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    clip = cfg.SOLVER.CLIP_GRADIENTS
    clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE = True, kind, 0.01
    model = PanopticExtTestTiny()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = build_optimizer(cfg, model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    optimizer.step()
    steps = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
    whole = torch.cat([s.flatten() for s in steps])
    if kind == "full_model":
        assert whole.norm().item() == pytest.approx(0.01, rel=1e-3)
    elif kind == "norm":
        assert all(s.norm().item() == pytest.approx(0.01, rel=1e-3) for s in steps)
    else:
        assert whole.abs().max().item() == pytest.approx(0.01, rel=1e-3)


# As the published code, which clips where CLIP_VALUE > 0.
@pytest.mark.parametrize("kind", ["full_model", "norm", "value"])
def test_clip_value_0_switches_clipping_off(tmp_path: Path, kind: str) -> None:
    cfg = tiny_cfg(tmp_path, BASE_LR=1.0, MOMENTUM=0.0, WEIGHT_DECAY=0.0)
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    clip = cfg.SOLVER.CLIP_GRADIENTS
    clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE = True, kind, 0.0
    model = PanopticExtTestTiny()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = build_optimizer(cfg, model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    optimizer.step()
    for parameter, value in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), value - 2.0)


@pytest.mark.parametrize("value", [-0.01, float("nan")])
def test_a_clip_value_that_clips_nothing_sensible_is_refused(tmp_path: Path, value: float) -> None:
    cfg = tiny_cfg(tmp_path)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = value
    with pytest.raises(ConfigError, match=r"CLIP_VALUE = .*, expected more than 0, or 0 for no"):
        build_optimizer(cfg, PanopticExtTestTiny())


def test_poly_schedule_reaches_zero(tmp_path: Path) -> None:
    cfg = tiny_cfg(tmp_path, LR_SCHEDULER_NAME="WarmupPolyLR", BASE_LR=1.0)
    optimizer = build_optimizer(cfg, PanopticExtTestTiny())
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[2] == pytest.approx((1 - 2 / 12) ** 0.9)
    assert rates[2:] == sorted(rates[2:], reverse=True) and rates[-1] < 0.2


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("OPTIMIZER", "ADAM", "did you mean 'ADAMW'"),
        ("LR_SCHEDULER_NAME", "Cosine", "Known: WarmupMultiStepLR"),
    ],
)
def test_unknown_names(tmp_path: Path, key: str, value: str, message: str) -> None:
    cfg = tiny_cfg(tmp_path, **{key: value})
    with pytest.raises(ConfigError, match=message):
        build_lr_scheduler(cfg, build_optimizer(cfg, PanopticExtTestTiny()))


def test_unknown_clip_type_and_nothing_to_train(tmp_path: Path) -> None:
    cfg = tiny_cfg(tmp_path)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full"
    with pytest.raises(ConfigError, match="did you mean 'full_model'"):
        build_optimizer(cfg, PanopticExtTestTiny())
    model = PanopticExtTestTiny()
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="all parameters are frozen"):
        build_optimizer(cfg, model)
