"""From model outputs to segmentations: tensors in, maps and tables out."""

from panoptic_ext.postprocessing.mask_inference import (
    Sizes,
    instance_inference,
    mask_inference,
    panoptic_inference,
    semantic_inference,
)
from panoptic_ext.postprocessing.mask_outputs import MaskOutputs
from panoptic_ext.postprocessing.segment_extents import with_extents
from panoptic_ext.postprocessing.stuff import panoptic_with_stuff, semantic_scores

__all__ = [
    "MaskOutputs",
    "Sizes",
    "instance_inference",
    "mask_inference",
    "panoptic_inference",
    "panoptic_with_stuff",
    "semantic_inference",
    "semantic_scores",
    "with_extents",
]
