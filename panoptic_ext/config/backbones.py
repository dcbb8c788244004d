"""Config keys of the backbones that Detectron2 lacks (Swin's are with Mask2Former's)."""

from __future__ import annotations

from detectron2.config import CfgNode as CN

__all__ = ["add_backbone_keys"]


def add_backbone_keys(cfg: CN) -> None:
    """Add MODEL.TIMM to `cfg`, in place: what MODEL.BACKBONE.NAME build_timm_backbone reads."""
    keys = CN()
    keys.NAME = ""  # a model of timm that gives feature maps, such as "convnext_tiny"
    keys.PRETRAINED = False  # fetch timm's own weights; MODEL.WEIGHTS, where given, comes later
    # Features wanted, named by stride: res2 is 4, res5 is 32. Empty: all from stride 4.
    keys.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    keys.OUT_INDICES = []  # the model's feature maps to choose from; empty: all
    # What takes the place of batch norm: "" keeps it, "BN", "SyncBN", "FrozenBN" (for pretrained
    # weights) or "GN" (from scratch). Activations stay.
    keys.NORM = ""
    # "paper": EfficientNet as in EfficientPS (Mohan and Valada, IJCV 2021), without squeeze and
    # excitation, with leaky ReLU and the convolution in front of the classifier. ImageNet weights
    # fit "" only.
    keys.PRESET = ""
    cfg.MODEL.TIMM = keys
