"""The parameter-free panoptic head of UPSNet (Xiong et al., CVPR 2019, section 3.1), streaming.

It stacks the logits [stuff, instances, unknown] and takes an argmax. With X for semantic logits,
Y_i for the mask logits of instance i resized to its box and X_i for the semantic logits of its
class in its box, both 0 outside, an instance has X_i + Y_i and the unknown class
max(X of the things) - max over i (X_i): a thing that no instance explains. Its pixels are void.
As in `hadamard_fusion` the stack becomes a running maximum; memory is O(H W).

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

    An instance wins pixels only inside its box (in the paper its logit is 0 outside). Without any
    instance the unknown class has the things' best logit. In a tie stuff comes before instances,
    and these before the unknown class. The arithmetic is float32 whatever the arguments' types.
    The rule's overlap threshold is about better instances of the same class, and a mask is where
    the mask logits are above 0.

    Args:
        sem_seg: (K, H, W) logits, channel = contiguous id.
        detections: N instances; see `Detections`.
        rule: classes and thresholds (published: score 0.6, overlap 0.3). Its `void_policy` says
            what an unknown pixel is.
        nms_threshold: an instance is dropped when its box has a larger IoU with that of a better
            one, of any class (published: 0.5).

    Returns:
        See `PanopticMap`; things by class, best first.

    Raises:
        ValueError: `sem_seg` does not have K channels, or the class of an instance is no thing.
    """
    rule.check_channels(sem_seg)
    stuff_ids = rule.stuff_ids
    selected = select_instances(detections, rule, (sem_seg.shape[1], sem_seg.shape[2]))
    # One class after the other, so that one image of covered pixels serves all of them.
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
        # In a tie the unknown class loses, as the last of the paper's stack.
        known = torch.le(unknown, best, out=unknown)
        things.mul_(known)
        if rule.void_policy == "void":
            stuff.mul_(known)
        return assemble_segments(things, stuff, instances, stuff_ids, rule.stuff_area_threshold)


def _suppress(instances: list[Instance], nms_threshold: float) -> list[Instance]:
    """Non-maximum suppression of boxes, over all classes; on the host, where the boxes are."""
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
    """Prune the instances, compare the others with `best`, and collect max X_i in `explained`.

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
                semantic = semantic.masked_fill(~kept, -torch.inf)
            region = explained[where][rows]
            torch.maximum(region, semantic, out=region)
            update_best(
                logits[rows].add_(semantic),
                code,
                best=best[where][rows],
                codes=things[where][rows],
            )
    tensors = [flag for flag in flags if isinstance(flag, Tensor)]
    return torch.stack(tensors).tolist() if tensors else [bool(flag) for flag in flags]


def _pad_with_zeros(explained: Tensor, instances: Sequence[Instance]) -> None:
    """X_i is 0 outside its box: clamp the maximum to >= 0 except where all boxes overlap."""
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
    """UPSNet's parameter-free head: see `upsnet_fusion`."""

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
