"""Config keys of EfficientPS and its parts (Mohan and Valada, IJCV 2021), its fusion's apart."""

from __future__ import annotations

from detectron2.config import CfgNode as CN

__all__ = ["add_efficientps_keys"]


def add_efficientps_keys(cfg: CN) -> None:
    """Add the keys of EfficientPS' network to `cfg`, in place.

    A NORM is one of Detectron2's ("BN", "SyncBN", "FrozenBN", "GN", "" for none). An ACTIVATION is
    "leaky_relu" (slope 0.01, as in the paper), "relu", "silu" or "" for none.
    """
    keys = CN()
    # Builder of the backbone under MODEL.BACKBONE.NAME build_two_way_fpn_backbone.
    keys.BOTTOM_UP = "build_resnet_backbone"
    keys.IN_FEATURES = ["res2", "res3", "res4", "res5"]  # empty: all that the backbone gives
    keys.OUT_CHANNELS = 256  # of each level
    keys.NORM = "BN"
    keys.ACTIVATION = "leaky_relu"
    keys.SEPARABLE = True  # output convolutions: separable (paper) or full (published code)
    cfg.MODEL.TWO_WAY_FPN = keys

    # SEM_SEG_HEAD.NAME EfficientPSSemSegHead; CONVS_DIM are the channels outside of the DPC.
    cfg.MODEL.SEM_SEG_HEAD.DPC_DIM = 256  # channels within the dense prediction cells
    cfg.MODEL.SEM_SEG_HEAD.ACTIVATION = "leaky_relu"
    # Loss: share of the labelled pixels of an image that counts, the worst ones.
    cfg.MODEL.SEM_SEG_HEAD.HARD_PIXEL_FRACTION = 0.25

    cfg.MODEL.RPN.NORM = ""  # RPN.HEAD_NAME SeparableRPNHead
    cfg.MODEL.RPN.ACTIVATION = "leaky_relu"
    cfg.MODEL.ROI_MASK_HEAD.ACTIVATION = "leaky_relu"  # ROI_MASK_HEAD.NAME SeparableMaskHead
