"""The loss of mask classification over all outputs of a decoder.

The formulas are the published ones (Cheng et al., CVPR 2022), and Hugging Face's transformers has
them ready-made as `Mask2FormerLoss`. This is our own code for two reasons. Speed: the losses of all
outputs share few large operations and one copy to the host, masks are computed where they are
looked at (`query_masks`), and targets are id maps instead of a plane each (`targets`). And no
dependency: an installation needs torch, Detectron2 and SciPy only.

Shapes: O outputs, B images, Q queries, K classes, M matched masks, P points, h x w predicted masks.
Losses of several outputs are computed together, see `query_masks.outputs_at_once`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.utils import comm
from torch import Tensor, nn

from panoptic_ext.host_copies import to_device
from panoptic_ext.modeling.mask_classification.bilinear import sample_masks
from panoptic_ext.modeling.mask_classification.losses import (
    classification_loss,
    empty_class_weight,
    point_dice_losses,
    point_mask_losses,
    semantic_loss,
)
from panoptic_ext.modeling.mask_classification.matcher import HungarianMatcher, Match
from panoptic_ext.modeling.mask_classification.points import (
    points_in_boxes,
    uncertain_points,
)
from panoptic_ext.modeling.mask_classification.query_masks import matched_masks, outputs_at_once
from panoptic_ext.modeling.mask_classification.targets import MaskTargets
from panoptic_ext.modeling.transformer_decoder.outputs import DecoderOutputs, Predictions

__all__ = ["SetCriterion", "semantic_map_loss"]


class SetCriterion(nn.Module):
    """Matches predictions to targets, then scores classes, and masks at points.

    Args:
        num_classes: K, without "no object".
        matcher: gives the assignment.
        weight_dict: weight of each loss by its name; kept for the caller, who applies it.
        no_object_weight: weight of "no object" in the classification loss.
        num_points: P, points a mask.
        oversample_ratio: random candidates for each point.
        importance_sample_ratio: share of the points chosen by uncertainty.
        box_sample_ratio: share of points drawn in each target's box. The rest is drawn by the
            published rule, with the two ratios above.

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

    def forward(self, outputs: DecoderOutputs, targets: Sequence[MaskTargets]) -> dict[str, Tensor]:
        """Losses of the final output and of the auxiliary ones.

        Args:
            outputs: of the decoder.
            targets: everything labelled in each image, on the outputs' device.

        Returns:
            Unweighted scalars `loss_ce`, `loss_mask`, `loss_dice`; those of auxiliary output i
            end in `_i`. Without any target the mask losses are 0 and still have a gradient.

        Raises:
            DatasetError, NonFiniteLossError: see `HungarianMatcher`.
        """
        return self.query_losses(outputs, self.query_targets(targets))

    def query_targets(self, targets: Sequence[MaskTargets]) -> Sequence[MaskTargets]:
        """Which of the targets the queries have to find: all of them."""
        return targets

    def match(self, outputs: DecoderOutputs, targets: Sequence[MaskTargets]) -> list[list[Match]]:
        """The assignment of queries to what they have to find, see `HungarianMatcher.forward`."""
        return self.matcher(outputs.predictions, targets)

    def query_losses(
        self, outputs: DecoderOutputs, targets: Sequence[MaskTargets]
    ) -> dict[str, Tensor]:
        """As `forward`, of what the queries have to find."""
        predictions, device = outputs.predictions, outputs.pred_masks.device
        rows = _matched_rows(
            self.match(outputs, targets), outputs.pred_logits.shape[1], targets, device
        )
        num_masks = _average_num_masks(targets, device)
        with torch.autocast(device.type, enabled=False):
            by_name = {
                "loss_ce": self._class_losses(predictions, targets, rows),
                **self._mask_losses(predictions, targets, rows, num_masks),
            }
        each = {name: losses.unbind() for name, losses in by_name.items()}
        return {
            f"{name}_{number - 1}" if number else name: losses[number]
            for number in range(len(predictions))
            for name, losses in each.items()
        }

    def _class_losses(
        self, outputs: Sequence[Predictions], targets: Sequence[MaskTargets], rows: _MatchedRows
    ) -> Tensor:
        """(O,) float32."""
        logits = torch.stack([output.pred_logits for output in outputs])
        classes = torch.full(logits.shape[:-1], self.num_classes, device=logits.device)
        labels = torch.cat([target.labels.to(logits.device) for target in targets])
        classes.view(-1)[rows.queries] = labels[rows.labels]
        return classification_loss(logits, classes, self.empty_weight)

    def _mask_losses(
        self,
        outputs: Sequence[Predictions],
        targets: Sequence[MaskTargets],
        rows: _MatchedRows,
        num_masks: float | Tensor,
    ) -> dict[str, Tensor]:
        """Cross-entropy and Dice, (O,) float32 each."""
        masks_of_images = matched_masks(outputs, rows.queries.split(rows.counts))
        boxes = [target.boxes() for target in targets] if self.box_sample_ratio else None
        chosen = rows.chosen.split(rows.counts)
        matches = [count // len(outputs) for count in rows.counts]
        values = int(sum(matches) * self.num_points * self.oversample_ratio)
        sums = []
        for block in outputs_at_once(len(outputs), values, rows.queries.device):
            parts = [slice(block.start * count, block.stop * count) for count in matches]
            losses = self._block_losses(
                [masks[part] for masks, part in zip(masks_of_images, parts, strict=True)],
                [rows_of[part] for rows_of, part in zip(chosen, parts, strict=True)],
                targets,
                boxes,
            )
            length = block.stop - block.start
            each = losses.split([part.stop - part.start for part in parts], dim=1)
            by_image = [
                part.view(2, length, count).sum(2)
                for part, count in zip(each, matches, strict=True)
            ]
            sums.append(sum(by_image[1:], start=by_image[0]))
        joined = (sums[0] if len(sums) == 1 else torch.cat(sums, dim=1)) / num_masks
        return dict(zip(("loss_mask", "loss_dice"), joined, strict=True))

    def _block_losses(
        self,
        masks: Sequence[Tensor],
        chosen: Sequence[Tensor],
        targets: Sequence[MaskTargets],
        boxes: Sequence[Tensor] | None,
    ) -> Tensor:
        """Cross-entropy and Dice (2, M) of matched masks at points of their own.

        Args:
            masks: of each image (m, h, w), M of all images together.
            chosen: of each image (m,), their targets.
            targets: of each image.
            boxes: of the targets of each image, where points are drawn in them.
        """
        matched = masks[0] if len(masks) == 1 else torch.cat(list(masks))
        in_boxes = int(self.num_points * self.box_sample_ratio)
        points = uncertain_points(
            matched,
            self.num_points - in_boxes,
            oversample_ratio=self.oversample_ratio,
            importance_sample_ratio=self.importance_sample_ratio,
        )
        if boxes is not None:
            chosen_boxes = torch.cat([box[rows] for box, rows in zip(boxes, chosen, strict=True)])
            points = torch.cat((points, points_in_boxes(chosen_boxes, in_boxes)), dim=1)
        each = zip(targets, chosen, points.split([len(rows) for rows in chosen]), strict=True)
        truth = torch.cat([target.sample_each(rows, at) for target, rows, at in each])
        logits = sample_masks(matched, points)
        return torch.stack((point_mask_losses(logits, truth), point_dice_losses(logits, truth)))


def semantic_map_loss(logits: Tensor, targets: Sequence[MaskTargets]) -> Tensor:
    """`semantic_loss` of (B, K, h, w) logits with the targets' classes at the cells of the map."""
    size = (logits.shape[-2], logits.shape[-1])
    return semantic_loss(logits, torch.stack([target.label_map(size) for target in targets]))


@dataclass
class _MatchedRows:
    """Matches of all outputs, image after image, in an image output after output.

    Attributes:
        queries: (T,) int64 places in (O, B, Q).
        labels: (T,) int64 places among the targets of all images.
        chosen: (T,) int64 places among the targets of the image.
        counts: of each image, how many of the T are its own.
    """

    queries: Tensor
    labels: Tensor
    chosen: Tensor
    counts: list[int]


def _matched_rows(
    matches: Sequence[Sequence[Match]],
    num_queries: int,
    targets: Sequence[MaskTargets],
    device: torch.device,
) -> _MatchedRows:
    """All matches on the device, by one copy that the host does not wait for."""
    queries, labels, chosen, first = [], [], [], 0
    for image, target in enumerate(targets):
        for number, of_output in enumerate(matches):
            place = (number * len(targets) + image) * num_queries
            queries.append(of_output[image][0].numpy() + place)
            chosen.append(of_output[image][1].numpy())
            labels.append(chosen[-1] + first)
        first += len(target)
    counts = [sum(len(of_output[i][0]) for of_output in matches) for i in range(len(targets))]
    joined = np.stack([np.concatenate(parts) for parts in (queries, labels, chosen)])
    on_device = to_device(joined, device)
    return _MatchedRows(on_device[0], on_device[1], on_device[2], counts)


def _average_num_masks(targets: Sequence[MaskTargets], device: torch.device) -> float | Tensor:
    """Targets of the batch, averaged over the workers and at least 1; the host does not wait."""
    count = float(sum(len(target) for target in targets))
    workers = comm.get_world_size()
    if workers == 1:
        return max(count, 1.0)
    total = torch.full((1,), count, device=device)  # filled there: a copy would be waited for
    torch.distributed.all_reduce(total)
    return (total / workers).clamp(min=1)
