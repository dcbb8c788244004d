"""The parameter-free panoptic head of UPSNet (Xiong et al., CVPR 2019, section 3.1), streaming.

The head stacks the logits [stuff, instances, unknown] and takes an argmax. Symbols of the paper:

    X    semantic logits
    X_i  semantic logits of the class of instance i inside its box, 0 outside
    Y_i  mask logits of instance i, resized to its box, 0 outside

The logit of instance i is X_i + Y_i. The logit of the unknown class is max(X of the things) -
max over i (X_i): it is large where the semantic logits show a thing that no instance explains.
Pixels of the unknown class are void. As in `hadamard_fusion`, a running maximum replaces the stack;
memory is O(H W).

Shapes: K classes, N instances, m x m mask logits, H x W pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from detectron2.config import configurable
from torch import Tensor
from torchvision.ops import nms

from panoptic_ext.fusion.base import (
    PANOPTIC_FUSION_REGISTRY,
    Detections,
    FusionRule,
    PanopticFusion,
    PanopticMap,
    check_threshold,
)
from panoptic_ext.fusion.segments import assemble_segments
from panoptic_ext.fusion.windows import (
    Instance,
    paste_logits,
    select_instances,
    update_best,
    update_covered,
    window_strips,
)
from panoptic_ext.postprocessing.best_class import best_class, best_logit

__all__ = ["UPSNetFusion", "upsnet_fusion"]


@torch.no_grad()
def upsnet_fusion(
    sem_seg: Tensor,
    detections: Detections,
    rule: FusionRule,
    *,
    nms_threshold: float = 0.5,
) -> PanopticMap:
    """Give each pixel to the largest logit of stuff, instances and the unknown class.

    An instance wins pixels only inside its box (in the paper its logit is 0 outside). If there is
    no instance, the logit of the unknown class is the things' best logit. In a tie stuff wins over
    instances, and instances win over the unknown class. The arithmetic is float32 whatever the
    arguments' types. For the rule's overlap threshold, a mask is the pixels whose mask logit is
    above 0, and only better instances of the same class count.

    Args:
        sem_seg: (K, H, W) logits, channel = contiguous id.
        detections: N instances; see `Detections`.
        rule: classes and thresholds (published: score 0.6, overlap 0.3). Its `void_policy` decides
            about the pixels of the unknown class.
        nms_threshold: an instance is discarded if the IoU of its box with the box of a better
            instance, of any class, is above this (published: 0.5).

    Returns:
        See `PanopticMap`; things by class, best first.

    Raises:
        ValueError: `sem_seg` does not have K channels, or an instance's class is not a thing.
    """
    rule.check_channels(sem_seg)
    stuff_ids = rule.stuff_ids
    selected = select_instances(detections, rule, (sem_seg.shape[1], sem_seg.shape[2]))
    # The instances are visited class by class, so that one image of covered pixels is enough.
    # The sort is stable: within a class they stay in the order of their scores.
    instances = sorted(_suppress(selected, nms_threshold), key=lambda each: each.category)
    with torch.autocast(sem_seg.device.type, enabled=False):
        best, stuff = best_class(sem_seg, stuff_ids)
        things, explained = torch.zeros_like(best), torch.full_like(best, -torch.inf)
        kept = _compete(
            sem_seg,
            paste_logits(detections, instances),
            first_code=1 + len(stuff_ids),
            overlap_threshold=rule.overlap_threshold,
            best=best,
            things=things,
            explained=explained,
        )
        _pad_with_zeros(explained, list(itertools.compress(instances, kept)))
        unknown = best_logit(sem_seg, rule.thing_ids).sub_(explained)
        # In a tie the unknown class loses, because it is the last one of the paper's stack.
        known = torch.le(unknown, best, out=unknown)
        things.mul_(known)
        if rule.void_policy == "void":
            stuff.mul_(known)
        return assemble_segments(things, stuff, instances, stuff_ids, rule.stuff_area_threshold)


def _suppress(instances: list[Instance], nms_threshold: float) -> list[Instance]:
    """Non-maximum suppression of boxes over all classes, on the host."""
    boxes = torch.tensor([each.box for each in instances], dtype=torch.float64).view(-1, 4)
    # Ranks instead of scores, so that equal scores keep their order.
    ranks = torch.arange(len(instances), 0, -1, dtype=torch.float64)
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
    """Discard instances by overlap, compare the others with `best`, and collect max over i (X_i).

    The maximum is stored in `explained`, for the instances that are kept.

    Args:
        pasted: instances by class, best first, with their Y_i in the window, (h, w).
        best, things, explained: (H, W) float32, updated.

    Returns:
        For each instance whether it was kept.
    """
    covered = torch.zeros_like(best)
    flags: list[Tensor | bool] = []
    same_class: list[Instance] = []
    for code, (instance, logits) in enumerate(pasted, start=first_code):
        where = instance.where
        if same_class and same_class[0].category != instance.category:
            # A new class begins. Only the windows of the previous class have been written to.
            for earlier in same_class:
                covered[earlier.where].zero_()
            same_class = []
        same_class.append(instance)
        kept = update_covered(logits, covered[where], overlap_threshold)
        flags.append(kept)
        if kept is False:
            continue
        for rows in window_strips(logits):
            semantic = sem_seg[instance.category][where][rows].float()
            if isinstance(kept, Tensor):
                # With -inf a discarded instance explains nothing and wins no pixel.
                semantic = semantic.masked_fill(~kept, -torch.inf)
            region = explained[where][rows]
            torch.maximum(region, semantic, out=region)
            update_best(
                logits[rows].add_(semantic),
                code,
                best=best[where][rows],
                codes=things[where][rows],
            )
    # On an accelerator the flags are tensors, which are copied to the host all at once.
    tensors = [flag for flag in flags if isinstance(flag, Tensor)]
    return torch.stack(tensors).tolist() if tensors else [bool(flag) for flag in flags]


def _pad_with_zeros(explained: Tensor, instances: Sequence[Instance]) -> None:
    """Let the zeros of X_i outside the boxes take part in the maximum over i, in place."""
    # Where all boxes overlap no X_i is such a zero. Elsewhere at least one is: clamp to >= 0 there.
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
    common = explained[rows, columns]  # empty where a slice ends before it starts
    inside = common.clone()
    explained.clamp_(min=0)
    common.copy_(inside)


@PANOPTIC_FUSION_REGISTRY.register_as("upsnet")
class UPSNetFusion(PanopticFusion):
    """The parameter-free head of UPSNet: see `upsnet_fusion`."""

    rule_keys: ClassVar[Mapping[str, str]] = {
        **PanopticFusion.rule_keys,
        "score_threshold": "UPSNET.SCORE_THRESHOLD",
        "overlap_threshold": "UPSNET.OVERLAP_THRESHOLD",
    }

    @configurable
    def __init__(self, rule: FusionRule, *, nms_threshold: float = 0.5) -> None:
        """
        Args:
            rule: classes and thresholds.
            nms_threshold: see `upsnet_fusion`.

        Raises:
            ConfigError: a threshold outside 0..1.
        """
        super().__init__(rule)
        check_threshold(
            "nms_threshold", nms_threshold, "MODEL.PANOPTIC_FUSION.UPSNET.NMS_THRESHOLD"
        )
        self.nms_threshold = nms_threshold

    @classmethod
    def from_config(cls, cfg: Any, *, thing_ids: Collection[int]) -> dict[str, Any]:
        threshold = cfg.MODEL.PANOPTIC_FUSION.UPSNET.NMS_THRESHOLD
        return {**super().from_config(cfg, thing_ids=thing_ids), "nms_threshold": threshold}

    def forward(self, sem_seg: Tensor, detections: Detections) -> PanopticMap:
        """See `upsnet_fusion`."""
        return upsnet_fusion(sem_seg, detections, self.rule, nms_threshold=self.nms_threshold)
