"""Config keys of the panoptic fusions (panoptic_ext.fusion)."""

from __future__ import annotations

from detectron2.config import CfgNode as CN

__all__ = ["add_fusion_keys"]


def add_fusion_keys(cfg: CN) -> None:
    """Add MODEL.PANOPTIC_FUSION to `cfg`, in place."""
    # Read by EfficientPS and Panoptic FPN. Mask2Former needs no fusion and refuses these keys:
    # MODEL.MASK_FORMER.TEST has its thresholds.
    cfg.MODEL.PANOPTIC_FUSION = CN()
    # Fusion of semantic logits and instances to one map: "hadamard" (EfficientPS), "heuristic"
    # (Kirillov et al., CVPR 2019), "heuristic_detectron2" (the same, Detectron2's own code),
    # "upsnet" (Xiong et al., CVPR 2019), "spatial_ranking" (Liu et al., CVPR 2019; trained with the
    # model), or another name of PANOPTIC_FUSION_REGISTRY. "": the model's default, "hadamard" for
    # EfficientPS and "heuristic" for Panoptic FPN.
    cfg.MODEL.PANOPTIC_FUSION.NAME = ""
    # Instances with a lower score (0 to 1) are ignored. EfficientPS only: Panoptic FPN reads
    # MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH.
    cfg.MODEL.PANOPTIC_FUSION.SCORE_THRESHOLD = 0.5
    # An instance is discarded if better ones cover more than this share of its mask (0 to 1).
    # EfficientPS only: Panoptic FPN reads MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH.
    cfg.MODEL.PANOPTIC_FUSION.OVERLAP_THRESHOLD = 0.5
    # Stuff with fewer pixels becomes void (2048: the paper's, for Cityscapes). EfficientPS only:
    # Panoptic FPN reads MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT.
    cfg.MODEL.PANOPTIC_FUSION.STUFF_AREA_THRESHOLD = 2048
    # hadamard: factor on the mask logits before they are fused with the semantic ones. The paper
    # has none; the published code uses 4, which gives other results where instance and semantic
    # logits disagree.
    cfg.MODEL.PANOPTIC_FUSION.INSTANCE_LOGIT_SCALE = 1.0
    # Label of a pixel whose best semantic class is a thing but that belongs to no instance: "void"
    # (the paper), or "stuff", its best stuff class.
    cfg.MODEL.PANOPTIC_FUSION.VOID_POLICY = "void"

    # The fusion "upsnet" has thresholds of its own, the published ones (Xiong et al., CVPR 2019).
    # It shares MODEL.PANOPTIC_FUSION.STUFF_AREA_THRESHOLD.
    cfg.MODEL.PANOPTIC_FUSION.UPSNET = CN()
    # Instances with a lower score (0 to 1) are ignored.
    cfg.MODEL.PANOPTIC_FUSION.UPSNET.SCORE_THRESHOLD = 0.6
    # Box IoU (0 to 1) above which the worse of two instances, of any class, is discarded.
    cfg.MODEL.PANOPTIC_FUSION.UPSNET.NMS_THRESHOLD = 0.5
    # An instance is discarded if better ones of its class cover more than this share of its mask (0
    # to 1).
    cfg.MODEL.PANOPTIC_FUSION.UPSNET.OVERLAP_THRESHOLD = 0.3

    # The head of the fusion "spatial_ranking", the learned order of overlapping instances (Liu et
    # al., CVPR 2019).
    cfg.MODEL.PANOPTIC_FUSION.SPATIAL_RANKING = CN()
    # Channels of its convolutions.
    cfg.MODEL.PANOPTIC_FUSION.SPATIAL_RANKING.CONV_DIM = 64
    # Number of its large-kernel convolutions.
    cfg.MODEL.PANOPTIC_FUSION.SPATIAL_RANKING.NUM_CONVS = 2
    # Side of these kernels in cells of the map; odd.
    cfg.MODEL.PANOPTIC_FUSION.SPATIAL_RANKING.KERNEL_SIZE = 7
    # Longer side, in cells, of the map that the instances are drawn on for the head.
    cfg.MODEL.PANOPTIC_FUSION.SPATIAL_RANKING.MAP_SIZE = 128
    # Weight of the head's loss.
    cfg.MODEL.PANOPTIC_FUSION.SPATIAL_RANKING.LOSS_WEIGHT = 1.0
