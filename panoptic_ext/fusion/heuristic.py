"""The heuristic merging of Kirillov et al. (Panoptic Segmentation, CVPR 2019, section 7).

Instances are placed by descending score, each on the pixels that are still free; stuff fills the
remaining pixels. Three functions do so with different inputs:

    heuristic_fusion              semantic logits and mask logits, as a model returns them
    heuristic_fusion_on_labels    a label map and binary masks, as files of any two models hold them
    heuristic_fusion_detectron2   as the first, by Detectron2's own functions, to compare with

The first returns the same map as Detectron2's `combine_semantic_and_instance_outputs`. Detectron2
reads the whole image for every instance and every class. Here an instance costs the pixels of its
box, and all stuff classes together cost one count and one table look-up.

Shapes: K classes, N instances, m x m mask logits, H x W pixels, a window of h x w.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.structures import Instances
from torch import Tensor

from panoptic_ext.fusion.base import (
    PANOPTIC_FUSION_REGISTRY,
    Detections,
    FusionRule,
    PanopticFusion,
    PanopticMap,
)
from panoptic_ext.fusion.segments import assemble_segments
from panoptic_ext.fusion.windows import (
    Instance,
    count_marked,
    overlaps_little,
    paste_marks,
    select_instances,
    window_strips,
)
from panoptic_ext.postprocessing.best_class import best_class

__all__ = [
    "Detectron2Fusion",
    "HeuristicFusion",
    "MaskWindow",
    "heuristic_fusion",
    "heuristic_fusion_detectron2",
    "heuristic_fusion_on_labels",
]

MaskWindow = tuple[Tensor, int, int]
"""An instance's (h, w) bool mask and the row and column of the image where it begins."""

# Detectron2 keeps an instance whose covered share equals the threshold. With 1.0 it would list
# instances without a free pixel, so that the threshold given to it stays just below 1.
_LARGEST_OVERLAP = math.nextafter(1.0, 0.0)


@torch.no_grad()
def heuristic_fusion(sem_seg: Tensor, detections: Detections, rule: FusionRule) -> PanopticMap:
    """Place instances by descending score over the semantic head's labels.

    A mask is the pixels where Detectron2 pastes a probability of at least 0.5.

    Args:
        sem_seg: (K, H, W) logits, channel = contiguous id.
        detections: N instances; see `Detections`.
        rule: classes and thresholds; see `FusionRule`.

    Returns:
        See `PanopticMap`; things by descending score.

    Raises:
        ValueError: `sem_seg` does not have K channels, or an instance's class is not a thing.
    """
    rule.check_channels(sem_seg)
    size = (sem_seg.shape[1], sem_seg.shape[2])
    instances = select_instances(detections, rule, size, margin=1)
    # With void_policy "void", thing classes compete for the pixels without an instance, too. Where
    # one wins, the pixel gets its code, whose entry in `stuff_ids` below is None: void.
    labels = _background_labels(rule)
    with torch.autocast(sem_seg.device.type, enabled=False):
        stuff = best_class(sem_seg, labels)[1]
        things = torch.zeros_like(stuff)
        pasted = paste_marks(detections, instances)
        for code, (instance, marks) in enumerate(pasted, start=1 + len(labels)):
            _place_marks(marks, things[instance.where], code, rule.overlap_threshold)
    stuff_ids = [None if label in rule.thing_ids else label for label in labels]
    return assemble_segments(things, stuff, instances, stuff_ids, rule.stuff_area_threshold)


def _background_labels(rule: FusionRule) -> Sequence[int]:
    """Classes that compete for pixels without an instance; where a thing wins, they are void."""
    return range(rule.num_classes) if rule.void_policy == "void" else rule.stuff_ids


def _place_marks(marks: Tensor, region: Tensor, code: int, overlap_threshold: float) -> None:
    """Write `code` to the free pixels of a mask, unless too many of its pixels are taken.

    Args:
        marks: (h, w) float32 of 0 and 1; overwritten.
        region: (h, w) float32 codes of the instances placed so far, 0 where free; updated.
    """
    counts, free = [], []
    for rows in window_strips(marks):
        strip = marks[rows]
        common = torch.gt(region[rows], 0, out=torch.empty_like(strip)).mul_(strip)
        counts.append((count_marked(strip), count_marked(common)))
        free.append(strip.sub_(common))
    kept = overlaps_little(counts, overlap_threshold)
    if kept is not False:
        for rows, strip in zip(window_strips(marks), free, strict=True):
            region[rows].add_(strip.mul_(kept * code))


@torch.no_grad()
def heuristic_fusion_on_labels(
    labels: Tensor,
    rule: FusionRule,
    *,
    scores: Sequence[float],
    classes: Sequence[int],
    mask_of: Callable[[int], MaskWindow],
) -> PanopticMap:
    """Merge a label map and binary masks, from any two models, as `heuristic_fusion` does.

    One mask is held at a time: memory is O(H W) for any N. The rule's `void_policy` is taken as
    "void": a label map has one class per pixel, so that the stuff behind a thing is unknown.

    Args:
        labels: (H, W) integers, the contiguous id of each pixel; values outside 0..K-1 are void.
        rule: classes and thresholds; see `FusionRule`.
        scores: (N,) of the instances; equal scores keep their order.
        classes: (N,) contiguous ids of their classes.
        mask_of: returns the mask of instance i; called by descending score. For masks of the whole
            image, `lambda i: (masks[i], 0, 0)`.

    Returns:
        See `PanopticMap`; on the device of `labels`.
    """
    stuff_ids = rule.stuff_ids
    # Labels are clamped to -1..K and shifted by 1. The first and the last entry, for labels outside
    # 0..K-1, stay 0 like those of things: void.
    code_of = torch.zeros(rule.num_classes + 2)
    code_of[[label + 1 for label in stuff_ids]] = torch.arange(1.0, 1 + len(stuff_ids))
    stuff = code_of.to(labels.device)[labels.long().clamp(-1, rule.num_classes) + 1]
    things = torch.zeros_like(stuff)
    instances: list[Instance] = []
    for index in sorted(range(len(scores)), key=lambda i: -float(scores[i])):
        score = float(scores[index])
        if score < rule.score_threshold:
            break
        mask, top, left = mask_of(index)
        rows, columns = slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1])
        box = (left, top, columns.stop, rows.stop)
        instances.append(Instance(index, score, int(classes[index]), box, rows, columns))
        code = len(stuff_ids) + len(instances)
        _place_mask(mask, things[rows, columns], code, rule.overlap_threshold)
    return assemble_segments(things, stuff, instances, stuff_ids, rule.stuff_area_threshold)


def _place_mask(mask: Tensor, region: Tensor, code: int, overlap_threshold: float) -> None:
    """As `_place_marks`, but for an (h, w) bool mask, which is not changed."""
    area = int(mask.sum())
    free = mask & (region == 0)
    placed = int(free.sum())
    if placed and (area - placed) / area <= overlap_threshold:
        region.masked_fill_(free, code)


@torch.no_grad()
def heuristic_fusion_detectron2(
    sem_seg: Tensor, detections: Detections, rule: FusionRule
) -> PanopticMap:
    """Merge as `heuristic_fusion` does, but by Detectron2's own functions; memory O(N H W)."""
    rule.check_channels(sem_seg)
    size = (sem_seg.shape[1], sem_seg.shape[2])
    selected = select_instances(detections, rule, size, margin=1)
    rows = [instance.index for instance in selected]
    kept = detections[torch.tensor(rows, dtype=torch.int64, device=sem_seg.device)]
    with torch.autocast(sem_seg.device.type, enabled=False):
        instances = Instances(size, pred_classes=kept.classes)
        # Detectron2's sort leaves the order of equal scores open. Ranks, which are all different,
        # keep the order of `selected`.
        instances.scores = torch.arange(len(selected), 0, -1, device=sem_seg.device)
        probabilities = kept.mask_logits.float().sigmoid()
        instances.pred_masks = paste_masks_in_image(probabilities, kept.boxes.float(), size)
        labels = _detectron2_labels(sem_seg, rule)
    panoptic_seg, segments = combine_semantic_and_instance_outputs(
        instances,
        labels,
        min(rule.overlap_threshold, _LARGEST_OVERLAP),
        max(1, rule.stuff_area_threshold),  # below 1 it would list stuff without pixels
        0,
    )
    areas = torch.bincount(panoptic_seg.flatten(), minlength=len(segments) + 1).tolist()
    for segment in segments:
        segment["area"] = areas[segment["id"]]
        if segment["isthing"]:
            instance = selected[segment["instance_id"]]
            segment.update(instance_id=instance.index, score=instance.score)
        else:
            segment["category_id"] -= 1  # `_detectron2_labels` adds 1: label 0 means things there
    return panoptic_seg, segments


def _detectron2_labels(sem_seg: Tensor, rule: FusionRule) -> Tensor:
    """(H, W) int64 labels for Detectron2's merging: 0 for things, 1 + contiguous id for stuff."""
    labels = list(_background_labels(rule))
    if not labels:
        return sem_seg.new_zeros(sem_seg.shape[1:], dtype=torch.int64)
    table = torch.tensor(
        [0 if label in rule.thing_ids else label + 1 for label in labels], device=sem_seg.device
    )
    return table[sem_seg[labels].max(dim=0).indices]


@PANOPTIC_FUSION_REGISTRY.register_as("heuristic")
class HeuristicFusion(PanopticFusion):
    """The heuristic merging: see `heuristic_fusion`."""

    needs_mask_logits: ClassVar[bool] = False

    def forward(self, sem_seg: Tensor, detections: Detections) -> PanopticMap:
        """See `heuristic_fusion`."""
        return heuristic_fusion(sem_seg, detections, self.rule)


@PANOPTIC_FUSION_REGISTRY.register_as("heuristic_detectron2")
class Detectron2Fusion(HeuristicFusion):
    """The heuristic merging by Detectron2's own functions: see `heuristic_fusion_detectron2`."""

    def forward(self, sem_seg: Tensor, detections: Detections) -> PanopticMap:
        """See `heuristic_fusion_detectron2`."""
        return heuristic_fusion_detectron2(sem_seg, detections, self.rule)
