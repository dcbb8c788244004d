"""Random targets, in both of their forms."""

from __future__ import annotations

import torch

from panoptic_ext.modeling.mask_classification.targets import (
    IdMapTargets,
    MaskTargets,
    PlaneTargets,
)


def random_id_map(height: int, width: int, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, count + 1, (height, width), generator=generator, dtype=torch.int32)


def planes(id_map: torch.Tensor, count: int) -> torch.Tensor:
    return id_map[None] == torch.arange(1, count + 1)[:, None, None]


def targets_of(id_map: torch.Tensor, labels: torch.Tensor, overlapping: bool) -> MaskTargets:
    """The same masks as planes that may overlap, or as an id map."""
    if overlapping:
        return PlaneTargets(labels, planes(id_map, len(labels)))
    return IdMapTargets(labels, id_map)
