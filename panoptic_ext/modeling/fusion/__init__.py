"""Fusions: semantic logits and instances -> panoptic map; importing this registers them."""

from .build import PANOPTIC_FUSION_REGISTRY, PanopticFusion, build_panoptic_fusion
from .fusions import Detectron2Fusion, HadamardFusion, HeuristicFusion, UPSNetFusion
from .spatial_ranking import SpatialRankingFusion, SpatialRankingHead

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
]
