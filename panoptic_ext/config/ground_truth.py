"""Which ground truth the mapper of the data derives for the model of a config."""

from __future__ import annotations

from typing import Any

from detectron2.modeling import META_ARCH_REGISTRY

__all__ = ["PANOPTIC_TARGETS", "panoptic_targets"]

PANOPTIC_TARGETS = ("instances", "sem_seg")
"""What the mapper can derive from the id map, and what Detectron2's models learn from."""


def panoptic_targets(cfg: Any) -> tuple[str, ...]:
    """INPUT.PANOPTIC_TARGETS, or where this is None what the model learns from.

    A meta-architecture says so by its attribute `mapper_targets`, see `MetaArchitecture`. One
    without the attribute, such as Detectron2's, gets all that there is.
    """
    if cfg.INPUT.PANOPTIC_TARGETS is not None:
        return tuple(cfg.INPUT.PANOPTIC_TARGETS)
    name = cfg.MODEL.META_ARCHITECTURE
    model = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
    return tuple(getattr(model, "mapper_targets", PANOPTIC_TARGETS))
