"""What queries that are placed in the image learn besides classes and masks.

Shapes: Q queries, N targets, h x w cells of a map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from panoptic_ext.modeling.mask_classification.targets import MaskTargets

__all__ = ["centre_map", "outside_target"]


def outside_target(places: Tensor, target: MaskTargets) -> Tensor:
    """Pairs of a query and a thing that the query's place does not lie in.

    The matcher avoids them: the location cost of FastInst (He et al., CVPR 2023).

    Args:
        places: (Q, 2) x and y in [0, 1].
        target: N things of the image.

    Returns:
        (Q, N) bool.
    """
    return ~target.covers(places).t()


def centre_map(target: MaskTargets, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """How near each cell is to the middle of the object it lies in, and that object's box.

    Nearness is exp(-2 |d|^2) with d in half sides of the object's box, divided by its greatest
    value in the object. The best cell of each object thus has 1, also where the middle of the box
    lies outside of the object. A cell covered by several masks belongs to the smallest. Void and
    padding count as background, so unlabelled objects there are trained as background.

    Args:
        target: N objects of the image.
        size: h, w of the map.

    Returns:
        (h, w) float32, 0 outside of objects; (4, h, w) float32 in [0, 1], middle x and y and half
        width and height, anything outside of objects.
    """
    # What lies on a larger object would otherwise have no cell, and thus no centre.
    target = target.smallest_first()
    owner = target.owner_map(size)
    height, width = size
    boxes = target.boxes()
    middle, half = (boxes[:, 2:] + boxes[:, :2]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    table = F.pad(torch.cat((middle, half), 1), (0, 0, 1, 0), value=1.0)[owner]
    y = (torch.arange(height, device=owner.device) + 0.5)[:, None] / height
    x = (torch.arange(width, device=owner.device) + 0.5)[None] / width
    distance = ((x - table[..., 0]) / table[..., 2]) ** 2 + (
        (y - table[..., 1]) / table[..., 3]
    ) ** 2
    nearness = torch.exp(-2 * distance) * (owner > 0)
    best = nearness.new_zeros(len(target) + 1)
    best.scatter_reduce_(0, owner.reshape(-1), nearness.reshape(-1), "amax")
    nearness = nearness / best.clamp(min=torch.finfo(nearness.dtype).tiny)[owner]
    return nearness, table.permute(2, 0, 1)
