"""Fusions: semantic logits and instances -> panoptic map; importing this registers them."""

from panoptic_ext.fusion.base import (
    PANOPTIC_FUSION_REGISTRY,
    PanopticFusion,
    build_panoptic_fusion,
)
from panoptic_ext.fusion.fusions import (
    Detectron2Fusion,
    HadamardFusion,
    HeuristicFusion,
    UPSNetFusion,
)
from panoptic_ext.fusion.hadamard import hadamard_fusion
from panoptic_ext.fusion.heuristic import (
    combine_masks,
    heuristic_fusion,
    heuristic_fusion_detectron2,
)
from panoptic_ext.fusion.spatial_ranking import SpatialRankingFusion, SpatialRankingHead
from panoptic_ext.fusion.upsnet import upsnet_fusion

__all__ = [
    "PANOPTIC_FUSION_REGISTRY",
    "Detectron2Fusion",
    "HadamardFusion",
    "HeuristicFusion",
    "PanopticFusion",
    "SpatialRankingFusion",
    "SpatialRankingHead",
    "UPSNetFusion",
    "build_panoptic_fusion",
    "combine_masks",
    "hadamard_fusion",
    "heuristic_fusion",
    "heuristic_fusion_detectron2",
    "upsnet_fusion",
]
