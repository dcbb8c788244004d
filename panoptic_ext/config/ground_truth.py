"""Choose the ground truth that the data mapper derives for the model of a config."""

from __future__ import annotations

from typing import Any

from detectron2.modeling import META_ARCH_REGISTRY

__all__ = ["PANOPTIC_TARGETS", "panoptic_targets"]

PANOPTIC_TARGETS = ("instances", "sem_seg")
"""Ground truth that the mapper can derive from the id map; Detectron2's models learn from it."""


def panoptic_targets(cfg: Any) -> tuple[str, ...]:
    """Return INPUT.PANOPTIC_TARGETS, or if this is None the ground truth that the model needs.

    A meta-architecture names it in its attribute `mapper_targets`, see `MetaArchitecture`. For one
    without the attribute, such as those of Detectron2, the mapper derives everything.
    """
    if cfg.INPUT.PANOPTIC_TARGETS is not None:
        return tuple(cfg.INPUT.PANOPTIC_TARGETS)
    name = cfg.MODEL.META_ARCHITECTURE
    model = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
    return tuple(getattr(model, "mapper_targets", PANOPTIC_TARGETS))
