"""Tiny models of each family on data sets of given classes, which have metadata but no files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import nn

from panoptic_ext import add_panoptic_ext_config
from panoptic_ext.data.coco.categories import Category
from panoptic_ext.data.datasets.known_classes import set_classes
from panoptic_ext.data.datasets.metadata import class_attributes
from tests import ROOT
from tests.tiny import eomt, mask_former
from tests.tiny.model_inputs import NARROW_RESNET
from tests.tiny.transformers_models import tiny_architecture

__all__ = ["FAMILIES", "build_family", "cfg_of_family", "register_names"]

SMALL_FPN = {
    **NARROW_RESNET,
    "MODEL.DEVICE": "cpu",
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
}
FAMILIES = (
    "panoptic_fpn", "efficientps", "mask_former", "placed", "instance", "eomt", "transformers",
)  # fmt: skip


def register_names(name: str, classes: Sequence[tuple[str, bool]]) -> None:
    """Metadata of a data set: (name, isthing) of each class."""
    categories = [Category(i, text, thing, (i, i, i)) for i, (text, thing) in enumerate(classes)]
    set_classes(name, class_attributes(categories))


def cfg_of_family(family: str, dataset: str, classes: Sequence[tuple[str, bool]]) -> CfgNode:
    """The config of a tiny model on a registered data set of these classes."""
    things = sum(thing for _, thing in classes)
    count = things if family == "instance" else len(classes)
    keys: dict[str, Any] = {"DATASETS.TRAIN": (dataset,), "MODEL.SEM_SEG_HEAD.NUM_CLASSES": count}
    if family == "eomt":
        # The auxiliary classifier has rows for classes, too.
        keys["MODEL.MASK_FORMER.SEMANTIC_LOSS_WEIGHT"] = 1.0
        return eomt.tiny_cfg(**keys)
    if family == "transformers":
        keys |= {
            "MODEL.DEVICE": "cpu",
            "MODEL.META_ARCHITECTURE": "TransformersPanoptic",
            "MODEL.TRANSFORMERS.ARCHITECTURE": tiny_architecture("mask2former"),
            "MODEL.TRANSFORMERS.NAME_OR_PATH": "tiny",
            "MODEL.TRANSFORMERS.PRETRAINED": False,
        }
        return _with_keys(keys)
    if family in _QUERIES:
        return mask_former.tiny_cfg(**keys, **_QUERIES[family])
    base = "PanopticFPN" if family == "panoptic_fpn" else "EfficientPS"
    keys |= {**SMALL_FPN, "MODEL.ROI_HEADS.NUM_CLASSES": things}
    return _with_keys(keys, f"configs/common/{family}/Base-{base}-Small.yaml")


def _with_keys(keys: dict[str, Any], base: str = "") -> CfgNode:
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    if base:
        cfg.merge_from_file(str(ROOT / base))
    cfg.merge_from_list([item for pair in keys.items() for item in pair])
    return cfg


def build_family(family: str, dataset: str, classes: Sequence[tuple[str, bool]]) -> nn.Module:
    """A tiny model, in evaluation mode, with random weights in which no rows are alike."""
    model = build_model(cfg_of_family(family, dataset, classes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


_QUERIES: dict[str, dict[str, Any]] = {
    "mask_former": {},
    "placed": {
        "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "PlacedQueryTransformerDecoder",
        "MODEL.MASK_FORMER.SEMANTIC_LOSS_WEIGHT": 5.0,
    },
    "instance": {
        "MODEL.MASK_FORMER.TASK": "instance",
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": False,
        "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": False,
        "MODEL.MASK_FORMER.TEST.INSTANCE_ON": True,
    },
}
