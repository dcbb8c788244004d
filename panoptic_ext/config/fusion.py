"""Config keys of the panoptic fusions (panoptic_ext.fusion)."""

from __future__ import annotations

from detectron2.config import CfgNode as CN

__all__ = ["add_fusion_keys"]


def add_fusion_keys(cfg: CN) -> None:
    """Add MODEL.PANOPTIC_FUSION to `cfg`, in place."""
    keys = CN()
    # Read by EfficientPS and Panoptic FPN. Mask2Former needs no fusion and refuses these keys:
    # MODEL.MASK_FORMER.TEST has its thresholds.
    # How semantic logits and instances become one map: "hadamard" (EfficientPS), "heuristic"
    # (Kirillov et al., CVPR 2019), "heuristic_detectron2" (the same, Detectron2's own code),
    # "upsnet" (Xiong et al., CVPR 2019), "spatial_ranking" (Liu et al., CVPR 2019; trained with the
    # model), or another name of PANOPTIC_FUSION_REGISTRY. "": the model's own, "hadamard" in
    # EfficientPS and "heuristic" in Panoptic FPN.
    keys.NAME = ""
    # EfficientPS reads the next three; Panoptic FPN reads MODEL.PANOPTIC_FPN.COMBINE instead.
    keys.SCORE_THRESHOLD = 0.5  # instances with a lower score are ignored
    # An instance is dropped when better ones cover more than this share of its mask.
    keys.OVERLAP_THRESHOLD = 0.5
    keys.STUFF_AREA_THRESHOLD = 2048  # pixels; smaller stuff becomes void (2048: Cityscapes)
    # hadamard: factor on the mask logits before they are fused with the semantic ones. The paper
    # has none; the published code uses 4, which gives other results where instance and semantic
    # logits disagree.
    keys.INSTANCE_LOGIT_SCALE = 1.0
    # What a pixel becomes where the semantic head's best class is a thing and no instance took it:
    # "void" (the paper), or "stuff": its best stuff class.
    keys.VOID_POLICY = "void"
    # upsnet reads the published thresholds below, and STUFF_AREA_THRESHOLD above.
    keys.UPSNET = CN()
    keys.UPSNET.SCORE_THRESHOLD = 0.6
    keys.UPSNET.NMS_THRESHOLD = 0.5  # box IoU above which the worse instance of any class goes
    # An instance is dropped when better ones of its class cover more than this share of its mask.
    keys.UPSNET.OVERLAP_THRESHOLD = 0.3
    # spatial_ranking: the head that learns the order of overlapping instances (Liu et al., CVPR
    # 2019).
    keys.SPATIAL_RANKING = CN()
    keys.SPATIAL_RANKING.CONV_DIM = 64  # channels
    keys.SPATIAL_RANKING.NUM_CONVS = 2  # large-kernel convolutions
    keys.SPATIAL_RANKING.KERNEL_SIZE = 7  # cells of the map, odd
    keys.SPATIAL_RANKING.MAP_SIZE = 128  # cells of the longer side of the map it looks at
    keys.SPATIAL_RANKING.LOSS_WEIGHT = 1.0
    cfg.MODEL.PANOPTIC_FUSION = keys
