"""Config keys of PMT, a mask transformer whose encoder is frozen.

Source: Cavagnero et al., "PMT: Plain Mask Transformer for Image and Video Segmentation with Frozen
Vision Encoders", CVPR workshops 2026.

Queries, annealing and masked attention are keys of MODEL.EOMT, the encoder's those of MODEL.VIT,
losses, task and outputs those of MODEL.MASK_FORMER.
"""

from __future__ import annotations

from detectron2.config import CfgNode as CN

__all__ = ["add_pmt_keys"]


def add_pmt_keys(cfg: CN) -> None:
    """Add the keys of PMT to `cfg`, in place."""
    # PMT: a decoder of plain ViT blocks on the features of a frozen ViT.
    cfg.MODEL.PMT = CN()
    # Blocks of the decoder, the published L2. A prediction is made before each and after the last;
    # MODEL.EOMT.ANNEALING has a pair for each.
    cfg.MODEL.PMT.NUM_LAYERS = 6
    # Blocks of the encoder, from 0, after which features are taken, ascending. []: four at equal
    # distances, the last block included (published: 5, 11, 17, 23 of 24; 2, 5, 8, 11 of 12).
    cfg.MODEL.PMT.FEATURE_BLOCKS = []
    # Width inside the MLP of a decoder block, relative to the encoder's channels.
    cfg.MODEL.PMT.MLP_RATIO = 1.0
    # An encoder without rotary position embedding (DINOv2) leaves the decoder without one of its
    # own. The decoder then has DINOv3's; in training its coordinates are multiplied by a number in
    # [1 / this, this], log-uniformly (published: 2). 0: they are not.
    cfg.MODEL.PMT.ROPE_RESCALE = 2.0
