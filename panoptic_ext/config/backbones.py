"""Config keys of the backbones that Detectron2 lacks (Swin's are with Mask2Former's)."""

from __future__ import annotations

from detectron2.config import CfgNode as CN

__all__ = ["add_backbone_keys"]


def add_backbone_keys(cfg: CN) -> None:
    """Add MODEL.TIMM to `cfg`, in place."""
    # Backbones of timm. MODEL.BACKBONE.NAME build_timm_backbone, build_timm_fpn_backbone (with
    # MODEL.FPN) and build_timm_two_way_fpn_backbone (with MODEL.TWO_WAY_FPN) read these keys.
    cfg.MODEL.TIMM = CN()
    # Model of timm (PyTorch Image Models) that returns feature maps, such as "convnext_tiny".
    cfg.MODEL.TIMM.NAME = ""
    # Download timm's own weights. MODEL.WEIGHTS, if it is given, is loaded after them.
    cfg.MODEL.TIMM.PRETRAINED = False
    # Features that the backbone returns, named by stride: res2 has stride 4, res5 has 32. Empty:
    # all from stride 4.
    cfg.MODEL.TIMM.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # Indices of the model's feature maps to choose from. Empty: all.
    cfg.MODEL.TIMM.OUT_INDICES = []
    # Normalisation that replaces batch norm: "" (the model stays as it is), "BN", "SyncBN",
    # "FrozenBN" (for pretrained weights) or "GN" (from scratch). Activations do not change.
    cfg.MODEL.TIMM.NORM = ""
    # "" for timm's model as it is, or "paper": EfficientNet as in EfficientPS (Mohan and Valada,
    # IJCV 2021), without squeeze and excitation, with leaky ReLU and the convolution in front of
    # the classifier. ImageNet weights fit "" only.
    cfg.MODEL.TIMM.PRESET = ""
