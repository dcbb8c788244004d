"""Attributes of meta-architectures: panoptic_ext's, Detectron2's and third parties'."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from functools import reduce

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from panoptic_ext import add_panoptic_ext_config
from panoptic_ext.modeling.meta_arch.base import (
    AdaptsStateDict,
    MetaArchitecture,
    meta_architecture,
)

PACKAGE = "somebodys_package"
SOURCE = """
from typing import Any
from detectron2.modeling import GeneralizedRCNN
from torch import nn
from panoptic_ext.modeling import EfficientPS, PanopticExtMaskFormer, UnifiedPanopticFPN
from panoptic_ext.modeling.meta_arch.base import MetaArchitecture

class ForeignFPN(UnifiedPanopticFPN):
    pass

class ForeignMaskFormer(PanopticExtMaskFormer):
    pass

class ForeignRCNN(GeneralizedRCNN):
    pass

class ForeignMixin(MetaArchitecture, nn.Module):
    has_contiguous_classes = True

class ForeignAttributes(nn.Module):
    has_contiguous_classes = True
    score_threshold_key = "MODEL.ROI_HEADS.SCORE_THRESH_TEST"

    @staticmethod
    def head_classes(cfg, num_classes, num_things):
        return num_classes + 1

class ForeignSilent(nn.Module):
    pass
"""
FOREIGN = [line.split()[1].split("(")[0] for line in SOURCE.splitlines() if line[:6] == "class "]


@pytest.fixture(autouse=True)
def foreign_package() -> Iterator[None]:
    """A third party's package, outside panoptic_ext, that registers its architectures."""
    module = types.ModuleType(PACKAGE)
    sys.modules[PACKAGE] = module
    exec(compile(SOURCE, f"{PACKAGE}.py", "exec"), module.__dict__)
    for name in FOREIGN:
        META_ARCH_REGISTRY._do_register(name, getattr(module, name))
    yield
    del sys.modules[PACKAGE]
    for name in FOREIGN:
        del META_ARCH_REGISTRY._obj_map[name]


def cfg_of(name: str):
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = name
    return cfg


def registered(package: str) -> list[str]:
    return [n for n, arch in META_ARCH_REGISTRY if arch.__module__.split(".")[0] == package]


def value_of(cfg, key: str):
    return reduce(lambda node, part: node[part], key.split("."), cfg)


def test_every_architecture_of_ours_has_the_documented_attributes() -> None:
    """F2: EfficientPS had no key for --confidence-threshold."""
    names = registered("panoptic_ext")
    assert {"EfficientPS", "PanopticExtMaskFormer", "UnifiedPanopticFPN"} <= set(names)
    for name in names:
        cfg = cfg_of(name)
        arch = meta_architecture(cfg)
        assert arch is META_ARCH_REGISTRY.get(name)
        assert arch.has_contiguous_classes, name
        assert arch.default_fusion is not None, name
        threshold = value_of(cfg, arch.score_threshold_key_for(cfg))
        # A model of transformers has the threshold of its image processor where it is None.
        assert isinstance(threshold, float) or name == "TransformersPanoptic", name


def test_the_key_of_the_score_threshold_is_the_chosen_fusions() -> None:
    for name in ("EfficientPS", "UnifiedPanopticFPN"):
        cfg = cfg_of(name)
        arch = meta_architecture(cfg)
        for fusion in ("hadamard", "heuristic", "spatial_ranking"):
            cfg.MODEL.PANOPTIC_FUSION.NAME = fusion
            assert arch.score_threshold_key_for(cfg) == arch.score_threshold_key
        cfg.MODEL.PANOPTIC_FUSION.NAME = "upsnet"
        key = arch.score_threshold_key_for(cfg)
        assert key == "MODEL.PANOPTIC_FUSION.UPSNET.SCORE_THRESHOLD"
        assert value_of(cfg, key) == 0.6


def test_every_architecture_of_detectron2_has_its_values() -> None:
    without_scores = {"ProposalNetwork", "SemanticSegmentor"}
    for name in registered("detectron2"):
        cfg = cfg_of(name)
        arch = meta_architecture(cfg)
        assert not arch.has_contiguous_classes, name
        assert arch.default_fusion == "", name
        key = arch.score_threshold_key_for(cfg)
        assert (key == "") == (name in without_scores), name
        assert not key or isinstance(value_of(cfg, key), float), name


def test_a_subclass_in_another_package_inherits_the_attributes() -> None:
    """F9: the name of the module decided."""
    for name, base in (
        ("ForeignFPN", "UnifiedPanopticFPN"),
        ("ForeignMaskFormer", "PanopticExtMaskFormer"),
        ("ForeignRCNN", "GeneralizedRCNN"),
    ):
        foreign, known = meta_architecture(cfg_of(name)), meta_architecture(cfg_of(base))
        assert foreign.has_contiguous_classes == known.has_contiguous_classes == (base[0] != "G")
        assert foreign.score_threshold_key == known.score_threshold_key != ""
        assert foreign.default_fusion == known.default_fusion


def test_a_class_that_only_sets_attributes_is_read_too() -> None:
    cfg = cfg_of("ForeignAttributes")
    arch = meta_architecture(cfg)
    assert arch.has_contiguous_classes
    assert arch.score_threshold_key_for(cfg) == "MODEL.ROI_HEADS.SCORE_THRESH_TEST"
    assert arch.head_classes(cfg, 5, 2) == 6
    assert not arch.learns_from_instances(cfg)
    assert arch.default_fusion is None


def test_the_mixin_and_silence_give_the_defaults() -> None:
    cfg = cfg_of("ForeignSilent")
    for name in ("ForeignSilent", "ForeignMixin"):
        arch = meta_architecture(cfg_of(name))
        assert arch.has_contiguous_classes == (name == "ForeignMixin")
        assert arch.score_threshold_key_for(cfg) == "" and arch.default_fusion is None
        assert arch.head_classes(cfg, 5, 2) == 5
        assert not arch.learns_from_instances(cfg)


def test_parts_adapt_weights_without_a_base_class() -> None:
    class Part(nn.Module):
        def adapt_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str) -> None:
            state_dict.pop(f"{prefix}old", None)

    assert isinstance(Part(), AdaptsStateDict)
    assert not isinstance(nn.Linear(1, 1), AdaptsStateDict)
    assert MetaArchitecture().why_missing(["a"]) == ""
