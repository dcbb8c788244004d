"""Fusions: semantic logits and instances -> panoptic map; importing this registers them."""

from panoptic_ext.modeling.fusion.build import (
    PANOPTIC_FUSION_REGISTRY,
    PanopticFusion,
    build_panoptic_fusion,
)
from panoptic_ext.modeling.fusion.fusions import (
    Detectron2Fusion,
    HadamardFusion,
    HeuristicFusion,
    UPSNetFusion,
)
from panoptic_ext.modeling.fusion.spatial_ranking import SpatialRankingFusion, SpatialRankingHead

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
