"""The heuristic merging of Kirillov et al. (Panoptic Segmentation, CVPR 2019), as in Detectron2.

Instances are pasted best first, each on the pixels that are still free; stuff fills the rest. The
result is that of Detectron2's `combine_semantic_and_instance_outputs`, which looks at the whole
image for every instance and every class. Here an instance costs the pixels of its box, and all of
stuff one count and one table look-up.

Shapes: K unified classes, N instances, m x m mask logits, H x W pixels, a window of h x w.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.structures import Instances
from torch import Tensor

from panoptic_ext.fusion.segments import (
    check_void_policy,
    write_segments,
)
from panoptic_ext.fusion.windows import (
    Instance,
    count_marked,
    few_common,
    paste_marks,
    select_instances,
    window_strips,
)
from panoptic_ext.postprocessing.best_class import best_class, stuff_ids_of

__all__ = ["combine_masks", "heuristic_fusion", "heuristic_fusion_detectron2"]

# Share of a mask that may be covered in Detectron2's merging, at most: without a free pixel the
# instance would be listed without one.
_MOST_COVERED = math.nextafter(1.0, 0.0)


@torch.no_grad()
def heuristic_fusion(
    sem_seg: Tensor,
    *,
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    mask_logits: Tensor,
    thing_ids: Collection[int],
    score_threshold: float,
    overlap_threshold: float,
    stuff_area_threshold: float,
    void_policy: str = "void",
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Instances by score over the semantic head's labels.

    Args:
        sem_seg: (K, H, W) logits, channel = unified class.
        boxes: (N, 4) x1, y1, x2, y2 in pixels of the output; may reach beyond it.
        scores: (N,).
        classes: (N,) unified ids of things.
        mask_logits: (N, m, m) logits of the predicted class in its box.
        thing_ids: unified ids of the things.
        score_threshold: instances with a lower score are ignored.
        overlap_threshold: an instance is dropped when better ones that were kept cover more than
            this share of its mask (probability of at least 0.5).
        stuff_area_threshold: stuff with fewer pixels becomes void.
        void_policy: what a free pixel is whose best class is a thing: "void", or "stuff" for its
            best stuff class.

    Returns:
        As `PanopticFusion.forward`.

    Raises:
        ValueError: an unknown `void_policy`, or an instance whose class is not a thing.
    """
    check_void_policy(void_policy)
    instances = select_instances(
        boxes=boxes,
        scores=scores,
        classes=classes,
        thing_ids=thing_ids,
        size=(sem_seg.shape[1], sem_seg.shape[2]),
        score_threshold=score_threshold,
        margin=1,
    )
    ids = _background_ids(len(sem_seg), thing_ids, void_policy)
    with torch.autocast(sem_seg.device.type, enabled=False):
        return _combine(
            best_class(sem_seg, ids)[1],
            paste_marks(mask_logits, boxes, instances),
            instances=instances,
            stuff_ids=_void_for_things(ids, thing_ids),
            overlap_threshold=overlap_threshold,
            stuff_area_threshold=stuff_area_threshold,
        )


@torch.no_grad()
def combine_masks(
    labels: Tensor,
    *,
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    masks: Tensor,
    num_classes: int,
    thing_ids: Collection[int],
    score_threshold: float,
    overlap_threshold: float,
    stuff_area_threshold: float,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """As `heuristic_fusion`, from masks that were pasted before and labels.

    Args:
        labels: (H, W) unified classes; things are void where no instance is.
        boxes: (N, 4) in which the masks were pasted; beyond them the masks are not looked at.
        masks: (N, H, W) bool, as Detectron2's `detector_postprocess` gives them.
        num_classes: K.

    Returns:
        As `PanopticFusion.forward`.
    """
    instances = select_instances(
        boxes=boxes,
        scores=scores,
        classes=classes,
        thing_ids=thing_ids,
        size=(labels.shape[0], labels.shape[1]),
        score_threshold=score_threshold,
        margin=1,
    )
    return _combine(
        labels.float().add_(1),
        ((each, masks[each.index][each.where].float()) for each in instances),
        instances=instances,
        stuff_ids=_void_for_things(range(num_classes), thing_ids),
        overlap_threshold=overlap_threshold,
        stuff_area_threshold=stuff_area_threshold,
    )


def _background_ids(
    num_classes: int, thing_ids: Collection[int], void_policy: str
) -> Sequence[int]:
    """Classes that compete for pixels without an instance."""
    return range(num_classes) if void_policy == "void" else stuff_ids_of(num_classes, thing_ids)


def _void_for_things(ids: Sequence[int], thing_ids: Collection[int]) -> list[int | None]:
    return [None if label in thing_ids else label for label in ids]


def _combine(
    stuff: Tensor,
    pasted: Iterable[tuple[Instance, Tensor]],
    *,
    instances: Sequence[Instance],
    stuff_ids: Sequence[int | None],
    overlap_threshold: float,
    stuff_area_threshold: float,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Visit the (h, w) float32 marks of `pasted`, best first; `stuff` has codes (H, W)."""
    things = torch.zeros_like(stuff)
    for code, (instance, marks) in enumerate(pasted, start=1 + len(stuff_ids)):
        region = things[instance.where]
        counts, free = [], []
        for rows in window_strips(marks):
            strip = marks[rows]
            common = torch.gt(region[rows], 0, out=torch.empty_like(strip)).mul_(strip)
            counts.append((count_marked(strip), count_marked(common)))
            free.append(strip.sub_(common))
        kept = few_common(counts, overlap_threshold)
        if kept is not False:
            for rows, strip in zip(window_strips(marks), free, strict=True):
                region[rows].add_(strip.mul_(kept * code))
    return write_segments(
        things,
        stuff,
        instances=instances,
        stuff_ids=stuff_ids,
        stuff_area_threshold=stuff_area_threshold,
    )


@torch.no_grad()
def heuristic_fusion_detectron2(
    sem_seg: Tensor,
    *,
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    mask_logits: Tensor,
    thing_ids: Collection[int],
    score_threshold: float,
    overlap_threshold: float,
    stuff_area_threshold: float,
    void_policy: str = "void",
) -> tuple[Tensor, list[dict[str, Any]]]:
    """As `heuristic_fusion`, by Detectron2's own functions; memory O(N H W)."""
    check_void_policy(void_policy)
    size = (sem_seg.shape[1], sem_seg.shape[2])
    selected = select_instances(
        boxes=boxes,
        scores=scores,
        classes=classes,
        thing_ids=thing_ids,
        size=size,
        score_threshold=score_threshold,
        margin=1,
    )
    index = torch.tensor(
        [each.index for each in selected], dtype=torch.int64, device=sem_seg.device
    )
    with torch.autocast(sem_seg.device.type, enabled=False):
        probabilities = mask_logits.float().sigmoid()[index]
        found = Instances(size, pred_classes=classes[index])
        # Detectron2 sorts by score, and leaves the order of equal ones open.
        found.scores = torch.arange(len(selected), 0, -1, device=sem_seg.device)
        found.pred_masks = paste_masks_in_image(probabilities, boxes.float()[index], size)
        ids = _background_ids(len(sem_seg), thing_ids, void_policy)
        labels = _detectron2_labels(sem_seg, ids, thing_ids)
    panoptic_seg, segments = combine_semantic_and_instance_outputs(
        found,
        labels,
        min(overlap_threshold, _MOST_COVERED),
        max(1, stuff_area_threshold),  # below 1 it would list stuff without pixels
        0,
    )
    areas = torch.bincount(panoptic_seg.flatten(), minlength=len(segments) + 1).tolist()
    for segment in segments:
        segment["area"] = areas[segment["id"]]
        if segment["isthing"]:
            instance = selected[segment["instance_id"]]
            segment.update(instance_id=instance.index, score=instance.score)
        else:
            segment["category_id"] -= 1
    return panoptic_seg, segments


def _detectron2_labels(sem_seg: Tensor, ids: Sequence[int], thing_ids: Collection[int]) -> Tensor:
    """(H, W) int64 labels as Detectron2's merging takes them: 0 thing, 1 + unified id of stuff."""
    if not ids:
        return sem_seg.new_zeros(sem_seg.shape[1:], dtype=torch.int64)
    table = torch.tensor(
        [0 if label in thing_ids else label + 1 for label in ids], device=sem_seg.device
    )
    return table[sem_seg[list(ids)].max(dim=0).indices]
