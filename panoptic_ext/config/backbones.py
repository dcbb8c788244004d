"""Config keys of the backbones that Detectron2 lacks (Swin's are with Mask2Former's)."""

from __future__ import annotations

from detectron2.config import CfgNode as CN

__all__ = ["add_backbone_keys"]


def add_backbone_keys(cfg: CN) -> None:
    """Add MODEL.TIMM, and what of a model is frozen, to `cfg`, in place."""
    _add_freezing_keys(cfg)
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


def _add_freezing_keys(cfg: CN) -> None:
    # What is frozen keeps its weights, has no gradient, and stays in evaluation mode.
    #
    # The backbone: its stem and its first n - 1 stages, as Detectron2 counts FREEZE_AT for its
    # ResNets: 1 is the stem, 2 all up to the features of stride 4 (timm: all up to those of stride
    # 2^n). A plain ViT has blocks in place of stages. "all": the whole backbone, but not a feature
    # pyramid on it, which has no pretrained weights. None or 0: as the model has it
    # (MODEL.BACKBONE.FREEZE_AT, MODEL.VIT.FREEZE).
    cfg.MODEL.BACKBONE.FREEZE = None
    # The batch norms of the whole backbone: statistics, weights and biases. For pretrained weights
    # and small batches. timm's become frozen ones (MODEL.TIMM.NORM FrozenBN).
    cfg.MODEL.BACKBONE.FREEZE_NORMS = False
    # Any parameters: beginnings of their names, up to a dot, such as ["backbone"], which trains the
    # heads alone, or ["sem_seg_head.pixel_decoder"]. `panoptic-ext parameter-table
    # --learning-rates` lists all names.
    cfg.MODEL.FREEZE = []
