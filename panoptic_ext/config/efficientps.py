"""Config keys of EfficientPS (Mohan and Valada, IJCV 2021), without those of its fusion."""

from __future__ import annotations

from detectron2.config import CfgNode as CN

__all__ = ["add_efficientps_keys"]


def add_efficientps_keys(cfg: CN) -> None:
    """Add the keys of EfficientPS' network to `cfg`, in place."""
    # The two-way FPN (section 3.2 of the paper), over any backbone. A NORM is one of Detectron2's:
    # "BN", "SyncBN", "FrozenBN", "GN", or "" for none. An ACTIVATION is "leaky_relu" (slope 0.01,
    # as in the paper), "relu", "silu", or "" for none.
    cfg.MODEL.TWO_WAY_FPN = CN()
    # Builder of the backbone below the FPN, if MODEL.BACKBONE.NAME is build_two_way_fpn_backbone.
    cfg.MODEL.TWO_WAY_FPN.BOTTOM_UP = "build_resnet_backbone"
    # Features of that backbone that the FPN takes. Empty: all.
    cfg.MODEL.TWO_WAY_FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    # Channels of each level (paper: 256).
    cfg.MODEL.TWO_WAY_FPN.OUT_CHANNELS = 256
    # Normalisation after each convolution.
    cfg.MODEL.TWO_WAY_FPN.NORM = "BN"
    # Activation after each normalisation.
    cfg.MODEL.TWO_WAY_FPN.ACTIVATION = "leaky_relu"
    # Output convolutions are separable (True, the paper) or full (False, the published code).
    cfg.MODEL.TWO_WAY_FPN.SEPARABLE = True

    # EfficientPSSemSegHead: channels in its dense prediction cells. MODEL.SEM_SEG_HEAD.CONVS_DIM is
    # the number of channels outside of these cells.
    cfg.MODEL.SEM_SEG_HEAD.DPC_DIM = 256
    # EfficientPSSemSegHead: activation, one of those of MODEL.TWO_WAY_FPN.ACTIVATION.
    cfg.MODEL.SEM_SEG_HEAD.ACTIVATION = "leaky_relu"
    # EfficientPSSemSegHead: share, 0 to 1, of an image's labelled pixels that count in the loss,
    # those with the largest loss (section 3.3 of the paper: a quarter).
    cfg.MODEL.SEM_SEG_HEAD.HARD_PIXEL_FRACTION = 0.25

    # MODEL.RPN.HEAD_NAME SeparableRPNHead: normalisation, one of those of MODEL.TWO_WAY_FPN.NORM.
    cfg.MODEL.RPN.NORM = ""
    # MODEL.RPN.HEAD_NAME SeparableRPNHead: activation, one of those of
    # MODEL.TWO_WAY_FPN.ACTIVATION.
    cfg.MODEL.RPN.ACTIVATION = "leaky_relu"
    # MODEL.ROI_MASK_HEAD.NAME SeparableMaskHead: activation, one of those of
    # MODEL.TWO_WAY_FPN.ACTIVATION.
    cfg.MODEL.ROI_MASK_HEAD.ACTIVATION = "leaky_relu"
