"""Config keys of the plain Vision Transformer as a backbone, and of a feature pyramid over it."""

from __future__ import annotations

from detectron2.config import CfgNode as CN

__all__ = ["add_vit_keys"]


def add_vit_keys(cfg: CN) -> None:
    """Add MODEL.VIT and MODEL.SIMPLE_FEATURE_PYRAMID to `cfg`, in place."""
    # A plain ViT of timm. MODEL.BACKBONE.NAME build_plain_vit_backbone reads these keys.
    cfg.MODEL.VIT = CN()
    # Model of timm (PyTorch Image Models), such as "vit_base_patch14_reg4_dinov2" or
    # "vit_base_patch16_dinov3_qkvb".
    cfg.MODEL.VIT.NAME = ""
    # Download timm's own weights. MODEL.WEIGHTS, if it is given, is loaded after them.
    cfg.MODEL.VIT.PRETRAINED = False
    # Side of a patch, pixels; behind the stem of a ViT such as "vit_tiny_r_s16_p8_224" positions of
    # the stem, 4 pixels each. 0: as timm's model.
    cfg.MODEL.VIT.PATCH_SIZE = 0
    # Side of the square image for which the position embedding is stored, pixels; it is resampled
    # for images of other sizes. 0: as timm's model.
    cfg.MODEL.VIT.IMAGE_SIZE = 0
    # Channels of a token. 0: as timm's model. Other values are for training from scratch, as those
    # of the next two keys.
    cfg.MODEL.VIT.EMBED_DIM = 0
    # Number of blocks. 0: as timm's model.
    cfg.MODEL.VIT.DEPTH = 0
    # Attention heads of a block. 0: as timm's model.
    cfg.MODEL.VIT.NUM_HEADS = 0
    # Stochastic depth: probability that the last block is skipped; it grows linearly from 0 with
    # depth.
    cfg.MODEL.VIT.DROP_PATH_RATE = 0.0
    # DINOv3's augmentation of rotary position embeddings: coordinates are multiplied in training by
    # one random factor, log-uniform in [1 / ROPE_RESCALE, ROPE_RESCALE]. DINOv3 has 2. 0: none.
    cfg.MODEL.VIT.ROPE_RESCALE = 0.0
    # Train no parameter of the ViT, and keep it in evaluation mode. What is around it is trained.
    # The same as MODEL.BACKBONE.FREEZE "all".
    cfg.MODEL.VIT.FREEZE = False
    # Recompute blocks in the backward pass: less memory, about a quarter more time.
    cfg.MODEL.VIT.GRADIENT_CHECKPOINTING = False
    # Run the blocks through torch.compile.
    cfg.MODEL.VIT.COMPILE = False

    # The simple feature pyramid of ViTDet (Li et al., ECCV 2022) over that ViT. MODEL.BACKBONE.NAME
    # build_plain_vit_pyramid_backbone reads these keys and those of MODEL.VIT.
    cfg.MODEL.SIMPLE_FEATURE_PYRAMID = CN()
    # Levels, called p<i> or res<i>, with stride 2^i: those that the heads take, such as [p2, p3,
    # p4, p5, p6] for Panoptic FPN. Levels from 6 on are every second pixel of the one before.
    cfg.MODEL.SIMPLE_FEATURE_PYRAMID.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # Channels of each level (paper: 256).
    cfg.MODEL.SIMPLE_FEATURE_PYRAMID.OUT_CHANNELS = 256
    # Normalisation after each convolution: "LN" (paper), "BN", "SyncBN", "FrozenBN", "GN", or ""
    # for none.
    cfg.MODEL.SIMPLE_FEATURE_PYRAMID.NORM = "LN"
