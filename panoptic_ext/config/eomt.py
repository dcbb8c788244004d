"""Config keys of EoMT, beside those that it shares with Mask2Former (MODEL.MASK_FORMER).

Source: Kerssies et al., "Your ViT is Secretly an Image Segmentation Model", CVPR 2025.
"""

from __future__ import annotations

from detectron2.config import CfgNode as CN

__all__ = ["add_eomt_keys"]


def add_eomt_keys(cfg: CN) -> None:
    """Add MODEL.EOMT to `cfg`, in place."""
    # EoMT: an encoder-only mask transformer. It reads the losses, MODEL.MASK_FORMER.TASK and
    # MODEL.MASK_FORMER.TEST of Mask2Former, and its ViT from MODEL.VIT.
    cfg.MODEL.EOMT = CN()
    # Number of queries, and so the largest number of segments in an image (published: 200; for
    # semantic segmentation 100).
    cfg.MODEL.EOMT.NUM_QUERIES = 200
    # Number of the ViT's last blocks that the queries pass (published: 3 for S and B, 4 for L, 5
    # for g). In training there is a prediction before each of them.
    cfg.MODEL.EOMT.NUM_BLOCKS = 4
    # Restrict a query's attention, in training, to the patches in its mask that is predicted before
    # the block.
    cfg.MODEL.EOMT.MASKED_ATTENTION = True
    # The iterations in which masks vanish from each block. "auto": the published rule, from
    # SOLVER.MAX_ITER. A list of NUM_BLOCKS pairs [start, end]. "off": they stay, and evaluation
    # masks, too; otherwise evaluation is one pass without masks.
    cfg.MODEL.EOMT.ANNEALING = "auto"
    # The pair [start, end] that replaces the first one of "auto"; published for panoptic DINOv3
    # models: [0, 3000]. Empty: none.
    cfg.MODEL.EOMT.ANNEALING_FIRST = []
    # Exponent of the probability of a mask between start and end: (1 - progress) ** power.
    cfg.MODEL.EOMT.ANNEALING_POWER = 0.9
    # Weights of the DINOv3 encoder that a published `.bin` file was trained from: file, folder or
    # address (timm://, zoo://, https://). Such a file holds the differences to them, because Meta's
    # licence lets nobody else publish them. "": timm's weights of the encoder of the file's size.
    # Weights of other forms do not need it.
    cfg.MODEL.EOMT.ENCODER_WEIGHTS = ""
