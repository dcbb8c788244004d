"""Instances of Detectron2's RoI heads: moved and selected with few waits of the host for CUDA."""

from __future__ import annotations

import torch
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

from panoptic_ext.host_copies import to_device

__all__ = ["scored_above", "with_thing_indices"]


def with_thing_indices(
    instances: Instances, thing_index: Tensor, device: torch.device
) -> Instances:
    """Ground truth on a device, its classes as thing indices.

    Args:
        instances: with `gt_classes`, contiguous ids; not changed.
        thing_index: (K,) int64 on the CPU, where ground truth comes from.
        device: of the result.
    """
    fields = dict(instances.get_fields())
    classes = fields["gt_classes"]
    fields["gt_classes"] = thing_index.to(classes.device)[classes]
    # `Instances.to` would copy each field from pageable memory.
    for name, value in fields.items():
        if isinstance(value, Tensor):
            fields[name] = to_device(value, device)
        elif isinstance(value, (Boxes, BitMasks)):
            fields[name] = type(value)(to_device(value.tensor, device))
        elif hasattr(value, "to"):
            fields[name] = value.to(device)
    return Instances(instances.image_size, **fields)


def scored_above(instances: Instances, least_score: float) -> Instances:
    """The instances whose score is above a threshold."""
    # Row numbers, because the host would wait for every field that a mask selects from.
    return instances[(instances.scores > least_score).nonzero()[:, 0]]
