"""From model outputs to segmentations: tensors in, maps and tables out."""

from panoptic_ext.postprocessing.hadamard_fusion import hadamard_fusion
from panoptic_ext.postprocessing.heuristic_fusion import (
    combine_masks,
    heuristic_fusion,
    heuristic_fusion_detectron2,
)
from panoptic_ext.postprocessing.mask_inference import (
    MaskOutputs,
    Sizes,
    instance_inference,
    mask_inference,
    panoptic_inference,
    semantic_inference,
)
from panoptic_ext.postprocessing.segment_extents import with_extents
from panoptic_ext.postprocessing.semantic_stuff import panoptic_with_stuff, semantic_scores
from panoptic_ext.postprocessing.upsnet_fusion import upsnet_fusion

__all__ = [
    "MaskOutputs",
    "Sizes",
    "combine_masks",
    "hadamard_fusion",
    "heuristic_fusion",
    "heuristic_fusion_detectron2",
    "instance_inference",
    "mask_inference",
    "panoptic_inference",
    "panoptic_with_stuff",
    "semantic_inference",
    "semantic_scores",
    "upsnet_fusion",
    "with_extents",
]
