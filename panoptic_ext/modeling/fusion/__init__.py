"""Fusions: semantic logits and instances -> panoptic map; importing this registers them."""

from .build import PANOPTIC_FUSION_REGISTRY, PanopticFusion, build_panoptic_fusion

__all__ = [
    "PANOPTIC_FUSION_REGISTRY",
    "PanopticFusion",
    "build_panoptic_fusion",
]
