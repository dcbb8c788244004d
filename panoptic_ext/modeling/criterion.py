"""The loss of mask classification over all outputs of a decoder.

Shapes: B images, Q queries, K classes, M matched masks of a batch, P points, h x w predicted masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.utils import comm
from torch import Tensor, nn

from .losses import (
    classification_loss,
    empty_class_weight,
    point_dice_loss,
    point_mask_loss,
)
from .matcher import HungarianMatcher, Match
from .point_sampling import MaskTargets, points_in_boxes, sample_masks, uncertain_points
from .query_masks import matched_masks

__all__ = ["MaskTargets", "SetCriterion"]


class SetCriterion(nn.Module):
    """Matches predictions to targets, then scores classes, and masks at points.

    Args:
        num_classes: K, without "no object".
        matcher: gives the assignment.
        weight_dict: weight of each loss; kept for the caller, who applies it.
        no_object_weight: weight of "no object" in the classification loss.
        num_points: P, points a mask.
        oversample_ratio: random candidates for each point.
        importance_sample_ratio: share of the points chosen by uncertainty.
        box_sample_ratio: share of the points drawn in each target's own box instead; the published
            rule, which the two above belong to, gives the rest.

    The buffer `empty_weight` (K + 1,) is part of published checkpoints.
    """

    empty_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher,
        weight_dict: dict[str, float],
        no_object_weight: float,
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
        box_sample_ratio: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_dict = weight_dict
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.box_sample_ratio = box_sample_ratio
        self.register_buffer("empty_weight", empty_class_weight(num_classes, no_object_weight))

    def forward(self, outputs: dict, targets: Sequence[MaskTargets]) -> dict[str, Tensor]:
        """Losses of the final output and of the auxiliary ones.

        Args:
            outputs: `pred_logits` (B, Q, K + 1), `pred_masks` (B, Q, h, w) or `QueryMasks`, and
                `aux_outputs`, a list of the same.
            targets: of each image, on the outputs' device.

        Returns:
            Unweighted scalars `loss_ce`, `loss_mask`, `loss_dice`; those of auxiliary output i
            end in `_i`. Without any target the mask losses are 0 and still have a gradient.

        Raises:
            DatasetError, NonFiniteLossError: see `HungarianMatcher`.
        """
        every_output = [outputs, *outputs.get("aux_outputs", [])]
        matches = _moved(self.matcher(every_output, targets), outputs["pred_masks"].device)
        num_masks = _average_num_masks(targets, outputs["pred_masks"].device)
        losses: dict[str, Tensor] = {}
        with torch.autocast(outputs["pred_masks"].device.type, enabled=False):
            queries = [[queries for queries, _ in match] for match in matches]
            every_mask = matched_masks(every_output, queries)
            boxes = [target.boxes() for target in targets] if self.box_sample_ratio else None
            for number, (output, match) in enumerate(zip(every_output, matches, strict=True)):
                suffix = f"_{number - 1}" if number else ""
                losses["loss_ce" + suffix] = self._class_loss(output, targets, match)
                mask_loss, dice_loss = self._mask_losses(
                    every_mask[number], targets, match, num_masks, boxes
                )
                losses["loss_mask" + suffix] = mask_loss
                losses["loss_dice" + suffix] = dice_loss
        return losses

    def _class_loss(
        self, output: dict[str, Tensor], targets: Sequence[MaskTargets], match: list[Match]
    ) -> Tensor:
        logits = output["pred_logits"]
        classes = torch.full(logits.shape[:2], self.num_classes, device=logits.device)
        for row, target, (queries, chosen) in zip(classes, targets, match, strict=True):
            device = logits.device
            row[queries] = target.labels.to(device)[chosen]
        return classification_loss(logits, classes, self.empty_weight)

    def _mask_losses(
        self,
        matched: Tensor,
        targets: Sequence[MaskTargets],
        match: list[Match],
        num_masks: float,
        boxes: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy and Dice of the matched masks (M, h, w) at points of their own."""
        in_boxes = int(self.num_points * self.box_sample_ratio)
        points = uncertain_points(
            matched,
            self.num_points - in_boxes,
            oversample_ratio=self.oversample_ratio,
            importance_sample_ratio=self.importance_sample_ratio,
        )
        if boxes is not None:
            own = [box[chosen] for box, (_, chosen) in zip(boxes, match, strict=True)]
            points = torch.cat((points, points_in_boxes(torch.cat(own), in_boxes)), dim=1)
        counts = [len(queries) for queries, _ in match]
        truth = torch.cat(
            [
                target.sample_each(chosen, own)
                for target, (_, chosen), own in zip(
                    targets, match, points.split(counts), strict=True
                )
            ]
        )
        logits = sample_masks(matched, points)
        return point_mask_loss(logits, truth, num_masks), point_dice_loss(logits, truth, num_masks)


def _moved(matches: list[list[Match]], device: torch.device) -> list[list[Match]]:
    """All matches on the device, by one copy that the host does not wait for."""
    flat = [part for of_output in matches for match in of_output for part in match]
    joined = torch.cat(flat)
    if device.type == "cuda":
        joined = joined.pin_memory()
    pieces = iter(joined.to(device, non_blocking=True).split([len(part) for part in flat]))
    return [[(next(pieces), next(pieces)) for _ in of_output] for of_output in matches]


def _average_num_masks(targets: Sequence[MaskTargets], device: torch.device) -> float:
    """Targets of the batch, averaged over the workers and at least 1."""
    count = float(sum(len(target) for target in targets))
    workers = comm.get_world_size()
    if workers > 1:
        total = torch.tensor([count], device=device)
        torch.distributed.all_reduce(total)
        count = total.item() / workers
    return max(count, 1.0)
