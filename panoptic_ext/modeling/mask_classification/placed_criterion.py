"""The criterion of queries that are placed in the image, with losses of places and of stuff.

Shapes: Q queries, N targets, h x w cells of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from panoptic_ext.modeling.mask_classification.batch_targets import BatchTargets
from panoptic_ext.modeling.mask_classification.criterion import SetCriterion, semantic_map_loss
from panoptic_ext.modeling.mask_classification.losses import box_loss, centre_loss
from panoptic_ext.modeling.mask_classification.matcher import Match
from panoptic_ext.modeling.mask_classification.targets import MaskTargets
from panoptic_ext.modeling.transformer_decoder.outputs import DecoderOutputs, Places

__all__ = ["PlacedCriterion", "centre_map", "outside_target"]


class PlacedCriterion(SetCriterion):
    """The criterion of a decoder whose queries are placed on things.

    Besides the losses of `SetCriterion` there are `loss_sem_seg` for the class of every pixel,
    `loss_centre` for the map of centres from which places are chosen, and `loss_box` for the boxes
    around the centres. The matcher avoids matching a query to a thing that its place lies outside
    of.

    Args:
        stuff_in_map: whether stuff is read from the semantic map, so that queries learn things
            alone. False if all targets are things anyway.
        **kwargs: of `SetCriterion`.
    """

    def __init__(self, *, stuff_in_map: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stuff_in_map = stuff_in_map

    def forward(
        self,
        outputs: DecoderOutputs,
        targets: Sequence[MaskTargets],
        batch: BatchTargets | None = None,
    ) -> dict[str, Tensor]:
        """As `SetCriterion.forward`; `outputs` have `semantic_logits` and `places`."""
        things = self.query_targets(targets)
        losses = self.query_losses(outputs, things, batch)
        places, semantic_logits = _placed(outputs)
        losses["loss_sem_seg"] = semantic_map_loss(
            semantic_logits, targets, self.class_balance, batch
        )
        size = (places.centre_logits.shape[-2], places.centre_logits.shape[-1])
        maps = [centre_map(target, size) for target in things]
        nearness = torch.stack([nearness for nearness, _ in maps])[:, None]
        boxes = torch.stack([boxes for _, boxes in maps])
        total = None if batch is None else self._total_nearness(batch, size)
        losses["loss_centre"] = centre_loss(places.centre_logits, nearness, total)
        losses["loss_box"] = box_loss(places.boxes, boxes, nearness, total)
        return losses

    def _total_nearness(self, batch: BatchTargets, size: tuple[int, int]) -> Tensor:
        """Sum of the maps of nearness of all images of a batch."""
        things = self.query_targets(batch.targets)
        return batch.once(
            "nearness", lambda: torch.stack([centre_map(t, size)[0].sum() for t in things]).sum()
        )

    def query_targets(self, targets: Sequence[MaskTargets]) -> Sequence[MaskTargets]:
        """Return the targets that the queries have to find: things, if stuff is in the map."""
        return [target.things() for target in targets] if self.stuff_in_map else targets

    def match(self, outputs: DecoderOutputs, targets: Sequence[MaskTargets]) -> list[list[Match]]:
        """As `SetCriterion.match`. A query whose place lies outside of a target is matched to it
        only if no other assignment exists."""
        pairs = zip(_placed(outputs)[0].points, targets, strict=True)
        avoided = [outside_target(points, target) for points, target in pairs]
        return self.matcher(outputs.predictions, targets, avoided)


def _placed(outputs: DecoderOutputs) -> tuple[Places, Tensor]:
    """Return places and semantic logits, which a decoder that `places_queries` has to return."""
    if outputs.places is None or outputs.semantic_logits is None:
        raise TypeError(
            "the transformer decoder sets places_queries, but its outputs have no `places` or no "
            "`semantic_logits`; return both, see DecoderOutputs"
        )
    return outputs.places, outputs.semantic_logits


def outside_target(places: Tensor, target: MaskTargets) -> Tensor:
    """Find the pairs of a query and a thing that the query's place lies outside of.

    The matcher avoids these pairs, as by the location cost of FastInst (He et al., CVPR 2023).

    Args:
        places: (Q, 2) x and y in [0, 1].
        target: N things of the image.

    Returns:
        (Q, N) bool.
    """
    return ~target.covers(places).t()


def centre_map(target: MaskTargets, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Compute how near each cell is to the middle of its object, and the box of that object.

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
    # Smallest first: an object that lies on a larger one would otherwise have no cell, and thus no
    # centre.
    target = target.smallest_first()
    owner = target.owner_map(size)
    height, width = size
    boxes = target.boxes()
    middle, half = (boxes[:, 2:] + boxes[:, :2]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    # Row 0 is for cells without an object. Its half sides are 1, so that the divisions below are
    # finite.
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
