"""Learning rates of a backbone's layers, by the names of parameters."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.engine.layer_decay import BACKBONE_MARK, layer_factor
from panoptic_ext.engine.optimizer import build_optimizer, solver_groups
from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.backbone.backbone_layers import Layer
from panoptic_ext.modeling.backbone.plain_vit import PlainViT
from panoptic_ext.modeling.eomt.head import EoMTHead
from tests.tiny.training import PanopticExtTestTiny


class PlainViTLike(nn.Module):
    """Some parameters of an EoMT, named as on a ViT of timm, without timm."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.net = net = nn.Module()
        for name in ("cls_token", "reg_token", "pos_embed"):
            setattr(net, name, nn.Parameter(torch.zeros(1, 1, 2)))
        net.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, 2, 2)})
        net.blocks = nn.ModuleList(self.block() for _ in range(depth))
        net.norm = nn.LayerNorm(2)
        self.sem_seg_head = nn.ModuleDict({"q": nn.Embedding(3, 2), "class_head": nn.Linear(2, 4)})

    def block(self) -> nn.Module:
        block = nn.ModuleDict({"norm1": nn.LayerNorm(2), "attn": nn.Linear(2, 6)})
        block["ls1"] = nn.Module()
        block["ls1"].gamma = nn.Parameter(torch.ones(2))
        return block


def solver(**keys: Any) -> CfgNode:
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    for key, value in {"BASE_LR": 1e-4, "WEIGHT_DECAY": 0.05, **keys}.items():
        cfg.SOLVER[key] = value
    return cfg.SOLVER


def by_name(model: nn.Module, groups: list[dict[str, Any]], key: str) -> dict[str, Any]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: group.get(key) for group in groups for p in group["params"]}


@cache
def large_eomt(name: str) -> nn.Module:
    """The parameters of an EoMT-L, without memory."""
    pytest.importorskip("timm")
    with torch.device("meta"):
        model = nn.Module()
        model.backbone = PlainViT(name)
        model.sem_seg_head = EoMTHead(
            embed_dim=1024, num_queries=200, num_blocks=4, num_classes=133, patch_size=16
        )
    return model


def published_factor(name: str, depth: int, decay: float, free: int) -> float:
    """The rule of the published training, read from the name alone."""
    if not name.startswith("backbone.net.") or name.startswith("backbone.net.norm."):
        return 1.0
    block = re.search(r"blocks\.(\d+)\.", name)
    index = int(block[1]) if block else 0
    return 1.0 if index in range(depth - free, depth) else decay ** (depth - 1 - index)


@pytest.mark.parametrize(
    ("name", "free", "multiplier"),
    [
        ("vit_large_patch14_reg4_dinov2", 0, 1.0),
        ("vit_large_patch14_reg4_dinov2", 4, 0.1),
        ("vit_large_patch16_dinov3_qkvb", 4, 1.0),
    ],
)
def test_factors_of_eomt_large(name: str, free: int, multiplier: float) -> None:
    model = large_eomt(name)
    keys = {"LAYER_DECAY": 0.8, "LAYER_DECAY_FREE_BLOCKS": free, "WEIGHT_DECAY_NORM": 0.05}
    groups = solver_groups(solver(BACKBONE_MULTIPLIER=multiplier, **keys), model)
    expected = {
        parameter: 1e-4
        * published_factor(parameter, 24, 0.8, free)
        * (multiplier if parameter.startswith("backbone.") else 1)
        for parameter, _ in model.named_parameters()
    }
    assert by_name(model, groups, "lr") == pytest.approx(expected, rel=1e-12)
    # Weight decay on everything: norms, biases, tokens, positions, queries and LayerScale.
    assert by_name(model, groups, "weight_decay") == dict.fromkeys(expected, 0.05)
    assert by_name(model, groups, BACKBONE_MARK) == dict.fromkeys(expected)
    assert len(groups) == 24 - max(free - 1, 0) + (multiplier != 1)


def test_the_backbone_of_a_second_warmup_is_marked() -> None:
    model = PlainViTLike(depth=3)
    model.backbone.net.pos_embed.requires_grad_(False)
    groups = solver_groups(solver(BACKBONE_WARMUP_ITERS=5), model)
    marks = by_name(model, groups, BACKBONE_MARK)
    assert "backbone.net.pos_embed" not in marks
    assert {n for n, mark in marks.items() if mark} == {n for n in marks if n[:9] == "backbone."}
    assert all(mark in (True, None) for mark in marks.values())


def test_a_pyramid_around_the_backbone_belongs_to_the_others() -> None:
    model = PlainViTLike(depth=2)
    model.backbone.lateral = nn.Conv2d(2, 2, 1)
    keys = solver(BACKBONE_WARMUP_ITERS=5, LAYER_DECAY=0.5, BACKBONE_MULTIPLIER=0.1)
    groups = solver_groups(keys, model)
    assert by_name(model, groups, BACKBONE_MARK)["backbone.lateral.weight"] is None
    assert by_name(model, groups, "lr")["backbone.lateral.weight"] == pytest.approx(1e-5)
    assert by_name(model, groups, BACKBONE_MARK)["backbone.net.cls_token"] is True


def test_a_backbone_of_unknown_layers_warms_up_as_a_whole() -> None:
    model = PanopticExtTestTiny()
    marks = by_name(model, solver_groups(solver(BACKBONE_WARMUP_ITERS=5), model), BACKBONE_MARK)
    assert {name for name, mark in marks.items() if mark} == {"backbone.weight", "backbone.bias"}


def test_without_the_keys_groups_are_those_of_earlier_runs() -> None:
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    groups = build_optimizer(cfg, PlainViTLike(depth=2)).state_dict()["param_groups"]
    plain = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1).state_dict()["param_groups"]
    assert [len(group["params"]) for group in groups] == [14, 6]
    assert all(group.keys() == plain[0].keys() for group in groups)


@given(
    number=st.integers(1, 50), decay=st.floats(0.01, 1.0), free=st.integers(0, 50), data=st.data()
)
def test_factors_grow_from_block_to_block(number: int, decay: float, free: int, data: Any) -> None:
    free = min(free, number)
    factors = [layer_factor(Layer(i, number), decay, free) for i in range(number + 1)]
    assert all(0 < factor <= 1 for factor in factors) and factors == sorted(factors)
    assert factors[number - max(free, 1) :] == [1.0] * (max(free, 1) + 1)
    i = data.draw(st.integers(0, number - 1))
    if i + 1 < number - free:
        assert factors[i] == pytest.approx(decay * factors[i + 1])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"LAYER_DECAY": 0.0}, r"LAYER_DECAY = 0.0, expected more than 0 and at most 1"),
        ({"LAYER_DECAY": 1.1}, r"LAYER_DECAY = 1.1, expected more than 0 and at most 1"),
        ({"LAYER_DECAY": float("nan")}, r"LAYER_DECAY = nan, expected more than 0"),
        ({"LAYER_DECAY_FREE_BLOCKS": -1}, r"FREE_BLOCKS = -1, expected at least 0"),
        ({"BACKBONE_WARMUP_ITERS": -5}, r"BACKBONE_WARMUP_ITERS = -5, expected at least 0"),
        (
            {"LAYER_DECAY": 0.8, "LAYER_DECAY_FREE_BLOCKS": 4},
            r"FREE_BLOCKS = 4, but the backbone has 3 blocks; expected 0 to 3",
        ),
    ],
)
def test_values_out_of_range_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        solver_groups(solver(**keys), PlainViTLike(depth=3))


def test_layers_that_are_unknown_are_an_error_unless_they_are_frozen() -> None:
    model = PanopticExtTestTiny()
    with pytest.raises(ConfigError, match=r"unknown: its parameters \('backbone.bias', 'backbone"):
        solver_groups(solver(LAYER_DECAY=0.9), model)
    model.backbone.requires_grad_(False)
    assert set(by_name(model, solver_groups(solver(LAYER_DECAY=0.9), model), "lr").values()) == {
        1e-4
    }
