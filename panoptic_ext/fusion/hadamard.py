"""The Hadamard fusion of EfficientPS (Mohan and Valada, IJCV 2021, section 3.4), streaming.

Symbols of the paper: MLA are an instance's mask logits, MLB the semantic logits of its class, FL
the fused logits. What EfficientPS stacks for all instances and gives to an argmax is here a running
maximum: each instance is compared with the best so far inside its box only. Time is
O(K H W + sum of box areas), memory O(H W).

Shapes: K unified classes, N instances, m x m mask logits, H x W pixels, a window of h x w.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from panoptic_ext.fusion.segments import (
    check_void_policy,
    write_segments,
)
from panoptic_ext.fusion.windows import (
    keep_by_overlap,
    paste_logits,
    select_instances,
    take_if_better,
    window_strips,
)
from panoptic_ext.postprocessing.best_class import best_stuff, stuff_ids_of

__all__ = ["hadamard_fusion", "hadamard_product"]


def hadamard_product(instance_mask_logits: Tensor, semantic_mask_logits: Tensor) -> Tensor:
    """FL = (sigmoid(MLA) + sigmoid(MLB)) * (MLA + MLB), elementwise.

    Both agree: 8 and 8 give 32. One is unsure: 8 and 0 give 12. They disagree: 8 and -8 give 0.

    Args:
        instance_mask_logits: MLA, any shape. Logits: probabilities would be squashed twice.
        semantic_mask_logits: MLB, of the same shape.
    """
    share = instance_mask_logits.sigmoid().add_(semantic_mask_logits.sigmoid())
    return share.mul_(instance_mask_logits + semantic_mask_logits)


@torch.no_grad()
def hadamard_fusion(
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
    instance_logit_scale: float = 1.0,
    void_policy: str = "void",
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Gives each pixel to the larger of the best stuff logit and the instances' fused logits.

    An instance wins pixels only inside its box. Without stuff classes it wins all of them that no
    other instance does. In a tie stuff comes before instances, and better instances before others.
    The arithmetic is float32 whatever the types of the arguments.

    Args:
        sem_seg: (K, H, W) logits, channel = unified class.
        boxes: (N, 4) x1, y1, x2, y2 in pixels of the output; may reach beyond it.
        scores: (N,).
        classes: (N,) unified ids of things.
        mask_logits: (N, m, m) logits of the predicted class in its box.
        thing_ids: unified ids of the things.
        score_threshold: instances with a lower score are ignored.
        overlap_threshold: an instance is dropped when better ones that were kept cover more than
            this share of its mask (logit above 0).
        stuff_area_threshold: stuff with fewer pixels becomes void.
        instance_logit_scale: factor on MLA; the paper has none, the published code 4.
        void_policy: what a pixel is that no instance wins and whose best class is a thing: "void",
            or "stuff" for its best stuff class.

    Returns:
        As `PanopticFusion.forward`.

    Raises:
        ValueError: an unknown `void_policy`, or an instance whose class is not a thing.
    """
    check_void_policy(void_policy)
    stuff_ids = stuff_ids_of(len(sem_seg), thing_ids)
    instances = select_instances(
        boxes=boxes,
        scores=scores,
        classes=classes,
        thing_ids=thing_ids,
        size=(sem_seg.shape[1], sem_seg.shape[2]),
        score_threshold=score_threshold,
    )
    with torch.autocast(sem_seg.device.type, enabled=False):
        best, stuff = best_stuff(
            sem_seg, thing_ids=sorted(thing_ids), stuff_ids=stuff_ids, void_policy=void_policy
        )
        things, covered = torch.zeros_like(best), torch.zeros_like(best)
        pasted = paste_logits(mask_logits, boxes, instances)
        for code, (instance, logits) in enumerate(pasted, start=1 + len(stuff_ids)):
            where = instance.where
            kept = keep_by_overlap(logits, covered[where], overlap_threshold)
            if kept is False:
                continue
            semantic, region, codes = sem_seg[instance.category][where], best[where], things[where]
            for rows in window_strips(logits):
                mla = logits[rows].mul_(instance_logit_scale)
                fused = hadamard_product(mla, semantic[rows].float())
                if isinstance(kept, Tensor):
                    fused.masked_fill_(~kept, -torch.inf)
                take_if_better(fused, code, best=region[rows], codes=codes[rows])
        return write_segments(
            things,
            stuff,
            instances=instances,
            stuff_ids=stuff_ids,
            stuff_area_threshold=stuff_area_threshold,
        )
