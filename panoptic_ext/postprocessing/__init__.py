"""From model outputs to segmentations: tensors in, maps and tables out."""

from .mask_inference import instance_inference, panoptic_inference, semantic_inference

__all__ = ["instance_inference", "panoptic_inference", "semantic_inference"]
