"""Fusions as modules: built from a config or from arguments, one result whatever they are fed."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg

from panoptic_ext import add_panoptic_ext_config
from panoptic_ext.errors import ConfigError
from panoptic_ext.fusion import (
    PANOPTIC_FUSION_REGISTRY,
    Detections,
    Detectron2Fusion,
    FusionRule,
    HadamardFusion,
    HeuristicFusion,
    PanopticFusion,
    UPSNetFusion,
    build_panoptic_fusion,
    hadamard_fusion,
    heuristic_fusion,
    heuristic_fusion_detectron2,
    upsnet_fusion,
)
from tests.fusion.dense_fusion import check_consistent, make_case

FUSIONS: dict[str, tuple[type, Callable[..., Any]]] = {
    "hadamard": (HadamardFusion, hadamard_fusion),
    "heuristic": (HeuristicFusion, heuristic_fusion),
    "heuristic_detectron2": (Detectron2Fusion, heuristic_fusion_detectron2),
    "upsnet": (UPSNetFusion, upsnet_fusion),
}


def make_cfg(**keys: Any) -> CfgNode:
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 6
    for name, value in keys.items():
        cfg.MODEL.PANOPTIC_FUSION[name] = value
    return cfg


def same(found: tuple[torch.Tensor, Any], expected: tuple[torch.Tensor, Any]) -> bool:
    return torch.equal(found[0], expected[0]) and found[1] == expected[1]


OWN_OPTIONS = {"hadamard": {"instance_logit_scale": 1.0}, "upsnet": {"nms_threshold": 0.5}}


def own_options(fusion: PanopticFusion) -> dict[str, float]:
    """Those of one fusion alone, by the name of its function's arguments."""
    names = {name for options in OWN_OPTIONS.values() for name in options}
    return {name: value for name, value in vars(fusion).items() if name in names}


@pytest.mark.parametrize("name", FUSIONS)
def test_the_key_chooses_the_fusion(name: str) -> None:
    fusion = build_panoptic_fusion(make_cfg(NAME=name), thing_ids=(1, 4))
    assert type(fusion) is FUSIONS[name][0]
    assert (fusion.rule.thing_ids, fusion.rule.num_classes) == ((1, 4), 6)
    assert not list(fusion.parameters())
    assert not fusion.state_dict()


def test_the_default_is_the_paper_s() -> None:
    fusion = build_panoptic_fusion(make_cfg(), thing_ids=(1, 4))
    assert isinstance(fusion, HadamardFusion)
    assert fusion.rule == FusionRule(
        (1, 4),
        6,
        score_threshold=0.5,
        overlap_threshold=0.5,
        stuff_area_threshold=2048,
        void_policy="void",
    )
    assert fusion.instance_logit_scale == 1.0


@pytest.mark.parametrize("name", FUSIONS)
def test_defaults_of_arguments_and_of_keys_agree(name: str) -> None:
    from_config = build_panoptic_fusion(make_cfg(NAME=name), thing_ids=(1, 4))
    rule = FusionRule([4, 1, 4], 6)
    if name == "upsnet":  # the published thresholds, which only the keys hold
        rule = replace(rule, score_threshold=0.6, overlap_threshold=0.3)
    assert from_config.rule == rule
    assert own_options(FUSIONS[name][0](rule)) == own_options(from_config)
    assert own_options(from_config) == OWN_OPTIONS.get(name, {})


@pytest.mark.parametrize("name", FUSIONS)
def test_every_option_of_the_function_comes_from_a_key(name: str) -> None:
    keys = {
        "NAME": name,
        "SCORE_THRESHOLD": 0.41,
        "OVERLAP_THRESHOLD": 0.42,
        "STUFF_AREA_THRESHOLD": 3,
        "INSTANCE_LOGIT_SCALE": 2.5,
        "VOID_POLICY": "stuff",
        "UPSNET": CfgNode(
            {"SCORE_THRESHOLD": 0.43, "NMS_THRESHOLD": 0.44, "OVERLAP_THRESHOLD": 0.45}
        ),
    }
    fusion = build_panoptic_fusion(make_cfg(**keys), thing_ids=(1, 4))
    rule = FusionRule(
        (1, 4),
        6,
        score_threshold=0.41,
        overlap_threshold=0.42,
        stuff_area_threshold=3,
        void_policy="stuff",
    )
    if name == "upsnet":
        rule = replace(rule, score_threshold=0.43, overlap_threshold=0.45)
    assert fusion.rule == rule
    wanted = {"hadamard": {"instance_logit_scale": 2.5}, "upsnet": {"nms_threshold": 0.44}}
    options = own_options(fusion)
    assert options == wanted.get(name, {})
    data = {"sem_seg", "detections", "rule"}
    assert set(options) == set(inspect.signature(FUSIONS[name][1]).parameters) - data


@pytest.mark.parametrize("name", FUSIONS)
def test_forward_is_the_function(name: str) -> None:
    case = make_case(4, 8)
    rule = FusionRule(case.thing_ids[::-1], 6, stuff_area_threshold=5)
    module = FUSIONS[name][0](rule)
    options = OWN_OPTIONS.get(name, {})
    expected = FUSIONS[name][1](case.sem_seg, case.detections, rule, **options)
    found = module(case.sem_seg, case.detections)
    assert same(found, expected)
    check_consistent(*found)
    assert any(s["isthing"] for s in found[1])


@pytest.mark.parametrize("name", FUSIONS)
def test_the_order_of_instances_does_not_matter(name: str) -> None:
    case = make_case(6, 10)
    case.scores = torch.linspace(0.4, 1, 10)[torch.randperm(10)]
    module = FUSIONS[name][0](FusionRule(case.thing_ids, 6, stuff_area_threshold=5))
    panoptic_seg, segments = module(case.sem_seg, case.detections)
    order = torch.randperm(10)
    found, others = module(case.sem_seg, case.detections[order])
    assert torch.equal(found, panoptic_seg)
    for segment in others:
        if segment["isthing"]:
            segment["instance_id"] = order[segment["instance_id"]].item()
    assert others == segments


@pytest.mark.parametrize("name", FUSIONS)
def test_gradients_are_not_recorded(name: str) -> None:
    case = make_case(4, 3)
    module = FUSIONS[name][0](FusionRule(case.thing_ids, 6))
    case.mask_logits.requires_grad_()
    panoptic_seg, segments = module(case.sem_seg.requires_grad_(), case.detections)
    assert not panoptic_seg.requires_grad
    assert all(type(value) in (int, float, bool) for s in segments for value in s.values())


def test_a_name_almost_right_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'hadamart'.*did you mean 'hadamard'"):
        build_panoptic_fusion(make_cfg(NAME="hadamart"), thing_ids=())


def test_an_unknown_void_policy_names_the_key() -> None:
    with pytest.raises(ConfigError, match=r"VOID_POLICY 'stuf'.*did you mean 'stuff'"):
        build_panoptic_fusion(make_cfg(VOID_POLICY="stuf"), thing_ids=())


RANKED = [*FUSIONS, "spatial_ranking"]
PLAIN = [name for name in RANKED if name != "upsnet"]
OUT_OF_RANGE = [
    *((names, key, value, "from 0 to 1; write 50% as 0.5")
      for value in (50, -0.1, 1.01, math.nan)
      for names, key in (
          (PLAIN, "SCORE_THRESHOLD"), (PLAIN, "OVERLAP_THRESHOLD"),
          (["upsnet"], "UPSNET.SCORE_THRESHOLD"), (["upsnet"], "UPSNET.NMS_THRESHOLD"),
          (["upsnet"], "UPSNET.OVERLAP_THRESHOLD"),
      )),
    *((["hadamard"], "INSTANCE_LOGIT_SCALE", value, "a finite number above 0; 1.0 is")
      for value in (0.0, -1.0, math.inf, math.nan)),
    *((RANKED, "STUFF_AREA_THRESHOLD", value, "pixels, 0 or more; 0 keeps all stuff")
      for value in (-1, math.nan)),
]  # fmt: skip


@cache
def cfg_of(name: str) -> CfgNode:
    return make_cfg(NAME=name)


def build(name: str, key: str, value: float) -> None:
    """A fusion whose key has that value; the config is made once and is as before afterwards."""
    cfg = cfg_of(name)
    *groups, leaf = key.split(".")
    keys = cfg.MODEL.PANOPTIC_FUSION
    for group in groups:
        keys = keys[group]
    before, keys[leaf] = keys[leaf], value
    try:
        build_panoptic_fusion(cfg, thing_ids=(1, 4))
    finally:
        keys[leaf] = before


@pytest.mark.parametrize(("names", "key", "value", "expected"), OUT_OF_RANGE)
def test_a_number_out_of_range_names_the_key_of_the_fusion_that_reads_it(
    names: list[str], key: str, value: float, expected: str
) -> None:
    message = re.escape(f"MODEL.PANOPTIC_FUSION.{key} is {value!r}; expected ")
    for name in RANKED:
        if name in names:
            with pytest.raises(ConfigError, match=message + ".*" + re.escape(expected)):
                build(name, key, value)
        else:
            build(name, key, value)


@pytest.mark.parametrize("name", RANKED)
def test_both_ends_of_a_range_are_in_it(name: str) -> None:
    for value in (0, 1, 0.0, 1.0):
        for key in ("SCORE_THRESHOLD", "OVERLAP_THRESHOLD", "STUFF_AREA_THRESHOLD"):
            build(name, key, value)
        for key in ("SCORE_THRESHOLD", "NMS_THRESHOLD", "OVERLAP_THRESHOLD"):
            build(name, f"UPSNET.{key}", value)
    build(name, "INSTANCE_LOGIT_SCALE", 1e-3)


# COCO's "separated" metadata: one semantic class for all things, so that no channel is a thing's.
def test_fusion_needs_a_channel_for_every_thing() -> None:
    with pytest.raises(ConfigError, match=r"thing_ids \[6, 79\] are outside 0..5"):
        build_panoptic_fusion(make_cfg(), thing_ids=(1, 6, 79))
    case = make_case(0, 1)
    for name, (_, function) in FUSIONS.items():
        options = OWN_OPTIONS.get(name, {})
        with pytest.raises(ValueError, match="6 channels, but there are 5 classes"):
            function(case.sem_seg, case.detections, FusionRule((1,), 5), **options)


def test_one_of_the_registry_s_names_cannot_be_taken_twice() -> None:
    with pytest.raises(AssertionError, match="already registered"):
        PANOPTIC_FUSION_REGISTRY.register_as("hadamard")(HadamardFusion)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"score_threshold": 50}, "score_threshold is 50; expected a number from 0 to 1"),
        ({"overlap_threshold": math.nan}, "overlap_threshold is nan; expected a number from 0"),
        ({"stuff_area_threshold": -1}, "stuff_area_threshold is -1; expected pixels, 0 or more"),
        ({"void_policy": "stuf"}, "unknown void_policy 'stuf'; did you mean 'stuff'"),
        ({"thing_ids": (1, 6, 79)}, r"thing_ids \[6, 79\] are outside 0..5"),
        ({"thing_ids": (-1,)}, r"thing_ids \[-1\] are outside 0..5"),
    ],
)
def test_a_rule_is_checked_where_it_is_made(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FusionRule(**{"thing_ids": (1, 4), "num_classes": 6, **changed})


def test_the_rule_of_a_fusion_has_things_and_stuff() -> None:
    rule = FusionRule([4, 1, 4], 6)
    assert (rule.thing_ids, rule.stuff_ids) == ((1, 4), [0, 2, 3, 5])
    assert rule == FusionRule((1, 4), 6) and hash(rule) == hash(FusionRule((1, 4), 6))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("boxes", (2, 5)), ("scores", (3,)), ("classes", (2, 1)), ("mask_logits", (2, 7, 6))],
)
def test_detections_have_one_row_an_instance(name: str, shape: tuple[int, ...]) -> None:
    instances = make_case(0, 2).instances
    assert len(Detections(**instances)) == 2
    with pytest.raises(ValueError, match=f"{name}.*expected.*one row an instance"):
        Detections(**{**instances, name: torch.zeros(shape)})
