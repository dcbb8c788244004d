"""The parameter-free panoptic head of UPSNet (Xiong et al., CVPR 2019, section 3.1), streaming.

It stacks the logits [stuff, instances, unknown] and takes an argmax. With X for semantic logits,
Y_i for the mask logits of instance i resized to its box and X_i for the semantic logits of its
class in its box, both 0 outside, an instance has X_i + Y_i and the unknown class
max(X of the things) - max over i (X_i): a thing that no instance explains. Its pixels are void.
As in `hadamard_fusion` the stack becomes a running maximum; memory is O(H W).

Shapes: K unified classes, N instances, m x m mask logits, H x W pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms

from panoptic_ext.fusion.segments import (
    check_void_policy,
    write_segments,
)
from panoptic_ext.fusion.windows import (
    Instance,
    keep_by_overlap,
    paste_logits,
    select_instances,
    take_if_better,
    window_strips,
)
from panoptic_ext.postprocessing.best_class import best_class, best_logit, stuff_ids_of

__all__ = ["upsnet_fusion"]


@torch.no_grad()
def upsnet_fusion(
    sem_seg: Tensor,
    *,
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    mask_logits: Tensor,
    thing_ids: Collection[int],
    score_threshold: float,
    nms_threshold: float,
    overlap_threshold: float,
    stuff_area_threshold: float,
    void_policy: str = "void",
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Gives each pixel to the largest logit of stuff, instances and the unknown class.

    An instance wins pixels only inside its box (in the paper its logit is 0 outside). Without any
    instance the unknown class has the things' best logit. In a tie stuff comes before instances,
    and these before the unknown class. The arithmetic is float32 whatever the arguments' types.

    Args:
        sem_seg: (K, H, W) logits, channel = unified class.
        boxes: (N, 4) x1, y1, x2, y2 in pixels of the output; may reach beyond it.
        scores: (N,).
        classes: (N,) unified ids of things.
        mask_logits: (N, m, m) logits of the predicted class in its box.
        thing_ids: unified ids of the things.
        score_threshold: instances with a lower score are ignored (published: 0.6).
        nms_threshold: an instance is dropped when its box has a larger IoU with that of a better
            one, of any class (published: 0.5).
        overlap_threshold: an instance is dropped when better ones of its class that were kept cover
            more than this share of its mask, logit above 0 (published: 0.3).
        stuff_area_threshold: stuff with fewer pixels becomes void.
        void_policy: what an unknown pixel is: "void", or "stuff" for its best stuff class.

    Returns:
        As `PanopticFusion.forward`; things by class, best first.

    Raises:
        ValueError: an unknown `void_policy`, or an instance whose class is not a thing.
    """
    check_void_policy(void_policy)
    stuff_ids = stuff_ids_of(len(sem_seg), thing_ids)
    selected = select_instances(
        boxes=boxes,
        scores=scores,
        classes=classes,
        thing_ids=thing_ids,
        size=(sem_seg.shape[1], sem_seg.shape[2]),
        score_threshold=score_threshold,
    )
    # One class after the other, so that one image of covered pixels serves all of them.
    instances = sorted(_suppress(selected, nms_threshold), key=lambda each: each.category)
    with torch.autocast(sem_seg.device.type, enabled=False):
        best, stuff = best_class(sem_seg, stuff_ids)
        things, explained = torch.zeros_like(best), torch.full_like(best, -torch.inf)
        kept = _compete(
            sem_seg,
            paste_logits(mask_logits, boxes, instances),
            first_code=1 + len(stuff_ids),
            overlap_threshold=overlap_threshold,
            best=best,
            things=things,
            explained=explained,
        )
        _pad_with_zeros(explained, list(itertools.compress(instances, kept)))
        unknown = best_logit(sem_seg, sorted(thing_ids)).sub_(explained)
        known = torch.le(unknown, best, out=unknown)
        things.mul_(known)
        if void_policy == "void":
            stuff.mul_(known)
        return write_segments(
            things,
            stuff,
            instances=instances,
            stuff_ids=stuff_ids,
            stuff_area_threshold=stuff_area_threshold,
        )


def _suppress(instances: list[Instance], nms_threshold: float) -> list[Instance]:
    """Non-maximum suppression of boxes, over all classes; on the host, where the boxes are."""
    boxes = torch.tensor([each.box for each in instances], dtype=torch.float64).view(-1, 4)
    ranks = torch.arange(
        len(instances), 0, -1, dtype=torch.float64
    )  # equal scores keep their order
    return [instances[i] for i in sorted(nms(boxes, ranks, nms_threshold).tolist())]


def _compete(
    sem_seg: Tensor,
    pasted: Iterable[tuple[Instance, Tensor]],
    *,
    first_code: int,
    overlap_threshold: float,
    best: Tensor,
    things: Tensor,
    explained: Tensor,
) -> list[bool]:
    """Prune the instances, compare the others with `best`, and collect max X_i in `explained`.

    Args:
        pasted: instances by class, best first, with their Y_i in the window, (h, w).
        best, things, explained: (H, W) float32, updated.

    Returns:
        For each instance whether it was kept.
    """
    covered = torch.zeros_like(best)
    flags: list[Tensor | bool] = []
    rivals: list[Instance] = []  # of the class at hand
    for code, (instance, logits) in enumerate(pasted, start=first_code):
        where = instance.where
        if rivals and rivals[0].category != instance.category:
            for rival in rivals:
                covered[rival.where].zero_()
            rivals = []
        rivals.append(instance)
        kept = keep_by_overlap(logits, covered[where], overlap_threshold)
        flags.append(kept)
        if kept is False:
            continue
        for rows in window_strips(logits):
            semantic = sem_seg[instance.category][where][rows].float()
            if isinstance(kept, Tensor):
                semantic = semantic.masked_fill(~kept, -torch.inf)
            region = explained[where][rows]
            torch.maximum(region, semantic, out=region)
            take_if_better(
                logits[rows].add_(semantic),
                code,
                best=best[where][rows],
                codes=things[where][rows],
            )
    tensors = [flag for flag in flags if isinstance(flag, Tensor)]
    return torch.stack(tensors).tolist() if tensors else [bool(flag) for flag in flags]


def _pad_with_zeros(explained: Tensor, instances: Sequence[Instance]) -> None:
    """Let the zeros of X_i outside the boxes count: everywhere but where all boxes meet."""
    if not instances:
        explained.zero_()
        return
    rows, columns = (
        slice(
            max(each.where[axis].start for each in instances),
            min(each.where[axis].stop for each in instances),
        )
        for axis in (0, 1)
    )
    meeting = explained[rows, columns]  # empty where a slice ends before it starts
    inside = meeting.clone()
    explained.clamp_(min=0)
    meeting.copy_(inside)
