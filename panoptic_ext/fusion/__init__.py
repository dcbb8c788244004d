"""Fusions: semantic logits and instances -> panoptic map; importing this registers them."""

from panoptic_ext.fusion.base import (
    PANOPTIC_FUSION_REGISTRY,
    Detections,
    FusionRule,
    PanopticFusion,
    PanopticMap,
    build_panoptic_fusion,
)
from panoptic_ext.fusion.hadamard import HadamardFusion, hadamard_fusion
from panoptic_ext.fusion.heuristic import (
    Detectron2Fusion,
    HeuristicFusion,
    heuristic_fusion,
    heuristic_fusion_detectron2,
    heuristic_fusion_on_labels,
)
from panoptic_ext.fusion.spatial_ranking import SpatialRankingFusion, SpatialRankingHead
from panoptic_ext.fusion.upsnet import UPSNetFusion, upsnet_fusion

__all__ = [
    "PANOPTIC_FUSION_REGISTRY",
    "Detections",
    "Detectron2Fusion",
    "FusionRule",
    "HadamardFusion",
    "HeuristicFusion",
    "PanopticFusion",
    "PanopticMap",
    "SpatialRankingFusion",
    "SpatialRankingHead",
    "UPSNetFusion",
    "build_panoptic_fusion",
    "hadamard_fusion",
    "heuristic_fusion",
    "heuristic_fusion_detectron2",
    "heuristic_fusion_on_labels",
    "upsnet_fusion",
]
