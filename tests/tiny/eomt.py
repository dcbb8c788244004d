"""A tiny EoMT."""

from __future__ import annotations

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from panoptic_ext import add_panoptic_ext_config
from panoptic_ext.config.published_names import resolve_published_names
from tests.tiny.mask_former import NAME

DINOV2 = "vit_small_patch14_reg4_dinov2"
DINOV3 = "vit_small_patch16_dinov3_qkvb"
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.META_ARCHITECTURE": "EoMT",
    "MODEL.BACKBONE.NAME": "build_plain_vit_backbone",
    "MODEL.VIT.NAME": DINOV2,
    "MODEL.VIT.PATCH_SIZE": 16,
    "MODEL.VIT.IMAGE_SIZE": 64,
    "MODEL.VIT.EMBED_DIM": 32,
    "MODEL.VIT.DEPTH": 4,
    "MODEL.VIT.NUM_HEADS": 2,
    "MODEL.EOMT.NUM_QUERIES": 8,
    "MODEL.EOMT.NUM_BLOCKS": 3,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 64,
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": True,
    "MODEL.MASK_FORMER.TEST.INSTANCE_ON": True,
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.1,
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.0,
    "DATASETS.TRAIN": (NAME,),
}


def tiny_cfg(**changes):
    """The config of the tiny model with other values, by their full keys."""
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    for key, value in {**TINY, **changes}.items():
        cfg.merge_from_list([key, value])
    resolve_published_names(cfg)
    return cfg


def build(**changes):
    torch.manual_seed(0)
    return build_model(tiny_cfg(**changes))
