"""The loss of mask classification over all outputs of a decoder.

The formulas are the published ones (Cheng et al., CVPR 2022), and Hugging Face's transformers has
them ready-made as `Mask2FormerLoss`. This is our own code for two reasons. Speed: the losses of all
outputs share few large operations and one copy to the host, mask logits are computed only where a
loss reads them (`query_masks`), and the targets of an image are one id map instead of a plane each
(`targets`). Dependencies: an installation needs torch, Detectron2 and SciPy only.

Shapes: O outputs, B images, Q queries, K classes, M matched masks, T matches of all outputs and
images, P points, h x w predicted masks.
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
from panoptic_ext.modeling.mask_classification.batch_targets import BatchTargets
from panoptic_ext.modeling.mask_classification.bilinear import sample_masks
from panoptic_ext.modeling.mask_classification.losses import (
    balanced_weights,
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
    """Match predictions to targets, then compute the losses of classes, and of masks at points.

    Args:
        num_classes: K, without "no object".
        matcher: gives the assignment.
        weight_dict: weight of each loss by its name. The caller applies it, not the criterion.
        no_object_weight: weight of "no object" in the classification loss.
        num_points: P, points a mask.
        oversample_ratio: random candidates for each point.
        importance_sample_ratio: share of the points chosen by uncertainty.
        box_sample_ratio: share of points drawn in each target's box. The rest is drawn by the
            published rule, with the two ratios above.
        class_balance: how far rare classes weigh more in the losses of classes, those of queries
            and of pixels; see `balanced_weights`. 0: as published.

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
        class_balance: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_dict = weight_dict
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.box_sample_ratio = box_sample_ratio
        self.class_balance = class_balance
        self.register_buffer("empty_weight", empty_class_weight(num_classes, no_object_weight))

    def forward(
        self,
        outputs: DecoderOutputs,
        targets: Sequence[MaskTargets],
        batch: BatchTargets | None = None,
    ) -> dict[str, Tensor]:
        """Losses of the final output and of the auxiliary ones.

        Args:
            outputs: of the decoder.
            targets: everything labelled in each image, on the outputs' device.
            batch: everything labelled in the batch that the images are a part of. The losses are
                divided by what those of the batch are divided by, so that those of its parts add
                up. None: the images are the batch.

        Returns:
            Unweighted scalars `loss_ce`, `loss_mask`, `loss_dice`; those of auxiliary output i
            end in `_i`. Without any target the mask losses are 0 and still have a gradient.

        Raises:
            DatasetError, NonFiniteLossError: see `HungarianMatcher`.
        """
        return self.query_losses(outputs, self.query_targets(targets), batch)

    def query_targets(self, targets: Sequence[MaskTargets]) -> Sequence[MaskTargets]:
        """Return the targets that the queries have to find: all of them."""
        return targets

    def match(self, outputs: DecoderOutputs, targets: Sequence[MaskTargets]) -> list[list[Match]]:
        """Assign queries to the targets that they have to find, see `HungarianMatcher.forward`."""
        return self.matcher(outputs.predictions, targets)

    def query_losses(
        self,
        outputs: DecoderOutputs,
        targets: Sequence[MaskTargets],
        batch: BatchTargets | None = None,
    ) -> dict[str, Tensor]:
        """As `forward`, given only the targets that the queries have to find."""
        predictions, device = outputs.predictions, outputs.pred_masks.device
        rows = _matched_rows(
            self.match(outputs, targets), outputs.pred_logits.shape[1], targets, device
        )
        of_batch = None if batch is None else self.query_targets(batch.targets)
        num_masks = _average_num_masks(targets if of_batch is None else of_batch, device)
        # Losses are float32 under mixed precision, too: a mean over 12544 points and a sum over all
        # masks lose too much in the half types.
        with torch.autocast(device.type, enabled=False):
            by_name = {
                "loss_ce": self._class_losses(predictions, targets, rows, of_batch),
                **self._mask_losses(predictions, targets, rows, num_masks),
            }
        scalars = {name: losses.unbind() for name, losses in by_name.items()}
        # Output 0 is the final one. The trainer adds the losses in the order of this dict, which
        # decides the last bit of the total.
        return {
            f"{name}_{number - 1}" if number else name: losses[number]
            for number in range(len(predictions))
            for name, losses in scalars.items()
        }

    def _class_losses(
        self,
        outputs: Sequence[Predictions],
        targets: Sequence[MaskTargets],
        rows: _MatchedRows,
        of_batch: Sequence[MaskTargets] | None = None,
    ) -> Tensor:
        """Classification loss of each output, (O,) float32."""
        logits = torch.stack([output.pred_logits for output in outputs])
        # Queries without a target keep class K, "no object".
        classes = torch.full(logits.shape[:-1], self.num_classes, device=logits.device)
        labels = _labels_of(targets, logits.device)
        classes.view(-1)[rows.queries] = labels[rows.labels]
        weight, total = self.empty_weight, None
        if self.class_balance:
            # The mean weight of the matched queries stays 1, so that "no object" keeps its share.
            counted = classes if of_batch is None else _labels_of(of_batch, logits.device)
            balanced = balanced_weights(counted, self.num_classes, self.class_balance)
            weight = torch.cat((weight[:-1] * balanced, weight[-1:]))
        if of_batch is not None:
            total = self._total_weight(of_batch, logits.shape[2])
        return classification_loss(logits, classes, weight, total)

    def _total_weight(self, targets: Sequence[MaskTargets], num_queries: int) -> Tensor:
        """Sum of the weights of all queries of a batch, in each output the same."""
        # With more targets than queries some are not matched. Which ones is not known here, so they
        # have the mean weight; that is exact for weights of 1, which all classes have.
        total = self.empty_weight.new_zeros(())
        for target in targets:
            number = len(target)
            if number:
                of_labels = self.empty_weight[target.labels.to(total.device)].mean()
                total = total + min(number, num_queries) * of_labels
            total = total + max(num_queries - number, 0) * self.empty_weight[-1]
        return total

    def _mask_losses(
        self,
        outputs: Sequence[Predictions],
        targets: Sequence[MaskTargets],
        rows: _MatchedRows,
        num_masks: float | Tensor,
    ) -> dict[str, Tensor]:
        """Cross-entropy and Dice of each output, (O,) float32 each."""
        masks_of_images = matched_masks(outputs, rows.queries.split(rows.counts))
        boxes = [target.boxes() for target in targets] if self.box_sample_ratio else None
        chosen = rows.chosen.split(rows.counts)
        # Each output matches min(Q, N) queries of an image, so that the division has no remainder.
        matches = [count // len(outputs) for count in rows.counts]
        # The largest tensor holds the candidates from which `uncertain_points` chooses.
        values = int(sum(matches) * self.num_points * self.oversample_ratio)
        sums = []
        for block in outputs_at_once(len(outputs), values, rows.queries.device):
            parts = [slice(block.start * count, block.stop * count) for count in matches]
            losses = self._block_losses(
                [masks[part] for masks, part in zip(masks_of_images, parts, strict=True)],
                [of_image[part] for of_image, part in zip(chosen, parts, strict=True)],
                targets,
                boxes,
            )
            num_outputs = block.stop - block.start
            losses_of_images = losses.split([part.stop - part.start for part in parts], dim=1)
            by_image = [
                of_image.view(2, num_outputs, count).sum(2)
                for of_image, count in zip(losses_of_images, matches, strict=True)
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
            chosen: of each image (m,) int64, the targets of these masks.
            targets: of each image.
            boxes: of the targets of each image; None if no points are drawn in them.
        """
        matched = masks[0] if len(masks) == 1 else torch.cat(list(masks))
        num_in_boxes = int(self.num_points * self.box_sample_ratio)
        points = uncertain_points(
            matched,
            self.num_points - num_in_boxes,
            oversample_ratio=self.oversample_ratio,
            importance_sample_ratio=self.importance_sample_ratio,
        )
        if boxes is not None:
            chosen_boxes = torch.cat([box[rows] for box, rows in zip(boxes, chosen, strict=True)])
            points = torch.cat((points, points_in_boxes(chosen_boxes, num_in_boxes)), dim=1)
        points_of_images = points.split([len(rows) for rows in chosen])
        images = zip(targets, chosen, points_of_images, strict=True)
        truth = torch.cat([target.sample_each(rows, at) for target, rows, at in images])
        logits = sample_masks(matched, points)
        return torch.stack((point_mask_losses(logits, truth), point_dice_losses(logits, truth)))


def semantic_map_loss(
    logits: Tensor,
    targets: Sequence[MaskTargets],
    balance: float = 0.0,
    batch: BatchTargets | None = None,
) -> Tensor:
    """`semantic_loss` between (B, K, h, w) logits and the class of the target at each cell.

    `batch` is as for `SetCriterion.forward`.
    """
    size = (logits.shape[-2], logits.shape[-1])
    labels = torch.stack([target.label_map(size) for target in targets])
    if batch is None:
        return semantic_loss(logits, labels, balance)
    of_batch = batch.once(
        f"labels {size}", lambda: torch.stack([t.label_map(size) for t in batch.targets])
    )
    return semantic_loss(logits, labels, balance, of_batch)


def _labels_of(targets: Sequence[MaskTargets], device: torch.device) -> Tensor:
    return torch.cat([target.labels.to(device) for target in targets])


@dataclass
class _MatchedRows:
    """The T matches of all outputs: image after image, and within an image output after output.

    Attributes:
        queries: (T,) int64 flat indices in (O, B, Q).
        labels: (T,) int64 indices in the targets of all images, one image after another.
        chosen: (T,) int64 indices in the targets of the match's image.
        counts: how many of the T matches each image has.
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
    queries, labels, chosen, first_target = [], [], [], 0
    for image, target in enumerate(targets):
        for number, of_output in enumerate(matches):
            first_query = (number * len(targets) + image) * num_queries
            queries.append(of_output[image][0].numpy() + first_query)
            chosen.append(of_output[image][1].numpy())
            labels.append(chosen[-1] + first_target)
        first_target += len(target)
    counts = [sum(len(of_output[i][0]) for of_output in matches) for i in range(len(targets))]
    joined = np.stack([np.concatenate(parts) for parts in (queries, labels, chosen)])
    on_device = to_device(joined, device)
    return _MatchedRows(on_device[0], on_device[1], on_device[2], counts)


def _average_num_masks(targets: Sequence[MaskTargets], device: torch.device) -> float | Tensor:
    """Number of targets in the batch, averaged over the workers and at least 1.

    The host does not wait for the device.
    """
    count = float(sum(len(target) for target in targets))
    workers = comm.get_world_size()
    if workers == 1:
        return max(count, 1.0)
    # `full` writes the number on the device. The host would wait for a copy of it.
    total = torch.full((1,), count, device=device)
    torch.distributed.all_reduce(total)
    return (total / workers).clamp(min=1)
