"""The Hadamard fusion of EfficientPS (Mohan and Valada, IJCV 2021, section 3.4), streaming.

Symbols of the paper: MLA are an instance's mask logits, MLB the semantic logits of its class, FL
the fused logits. EfficientPS stacks FL of all instances and takes an argmax. Here each instance is
compared with the best so far inside its box only. Time is O(K H W + sum of box areas), memory
O(H W).

Shapes: K classes, N instances, m x m mask logits, H x W pixels, a window of h x w.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from detectron2.config import configurable
from torch import Tensor

from panoptic_ext.errors import ConfigError
from panoptic_ext.fusion.base import (
    PANOPTIC_FUSION_REGISTRY,
    Detections,
    FusionRule,
    PanopticFusion,
    PanopticMap,
)
from panoptic_ext.fusion.segments import assemble_segments
from panoptic_ext.fusion.windows import (
    paste_logits,
    select_instances,
    update_best,
    update_covered,
    window_strips,
)
from panoptic_ext.postprocessing.best_class import best_stuff

__all__ = ["HadamardFusion", "hadamard_fusion", "hadamard_product"]


def hadamard_product(instance_mask_logits: Tensor, semantic_mask_logits: Tensor) -> Tensor:
    """FL = (sigmoid(MLA) + sigmoid(MLB)) * (MLA + MLB), elementwise.

    Both agree: 8 and 8 give 32. One is unsure: 8 and 0 give 12. They disagree: 8 and -8 give 0.

    Args:
        instance_mask_logits: MLA, any shape. Logits: probabilities would be squashed twice.
        semantic_mask_logits: MLB, of the same shape.
    """
    # The first factor, in 0..2, is the confidence of both. Where both deny the object it is near 0,
    # and so is FL: there it loses to positive stuff logits, but not by the full sum of the logits.
    share = instance_mask_logits.sigmoid().add_(semantic_mask_logits.sigmoid())
    return share.mul_(instance_mask_logits + semantic_mask_logits)


@torch.no_grad()
def hadamard_fusion(
    sem_seg: Tensor,
    detections: Detections,
    rule: FusionRule,
    *,
    instance_logit_scale: float = 1.0,
) -> PanopticMap:
    """Give each pixel to the larger of the best stuff logit and the instances' fused logits.

    An instance wins pixels only inside its box. Without stuff classes it wins all of them that no
    other instance does. In a tie stuff comes before instances, and better instances before others.
    The arithmetic is float32 whatever the types of the arguments. A mask, for the rule's overlap
    threshold, is where the mask logits are above 0.

    Args:
        sem_seg: (K, H, W) logits, channel = contiguous id.
        detections: N instances; see `Detections`.
        rule: classes and thresholds; see `FusionRule`.
        instance_logit_scale: factor on MLA; the paper has none, the published code 4.

    Returns:
        See `PanopticMap`; things by falling score.

    Raises:
        ValueError: `sem_seg` does not have K channels, or the class of an instance is no thing.
    """
    rule.check_channels(sem_seg)
    stuff_ids = rule.stuff_ids
    instances = select_instances(detections, rule, (sem_seg.shape[1], sem_seg.shape[2]))
    with torch.autocast(sem_seg.device.type, enabled=False):
        best, stuff = best_stuff(
            sem_seg, thing_ids=rule.thing_ids, stuff_ids=stuff_ids, void_policy=rule.void_policy
        )
        # Ties: `update_best` wants more than the best so far, which is stuff's at first and then
        # that of the better instances.
        things, covered = torch.zeros_like(best), torch.zeros_like(best)
        pasted = paste_logits(detections, instances)
        for code, (instance, logits) in enumerate(pasted, start=1 + len(stuff_ids)):
            where = instance.where
            kept = update_covered(logits, covered[where], rule.overlap_threshold)
            if kept is False:
                continue
            semantic, region, codes = sem_seg[instance.category][where], best[where], things[where]
            for rows in window_strips(logits):
                mla = logits[rows].mul_(instance_logit_scale)
                fused = hadamard_product(mla, semantic[rows].float())
                if isinstance(kept, Tensor):
                    # On a device the host does not wait for `kept`: an instance that is dropped
                    # competes with -inf, which wins nothing.
                    fused.masked_fill_(~kept, -torch.inf)
                update_best(fused, code, best=region[rows], codes=codes[rows])
        return assemble_segments(things, stuff, instances, stuff_ids, rule.stuff_area_threshold)


@PANOPTIC_FUSION_REGISTRY.register_as("hadamard")
class HadamardFusion(PanopticFusion):
    """EfficientPS's fusion: see `hadamard_fusion`."""

    @configurable
    def __init__(self, rule: FusionRule, *, instance_logit_scale: float = 1.0) -> None:
        """
        Args:
            rule: classes and thresholds.
            instance_logit_scale: factor on the mask logits, above 0.

        Raises:
            ConfigError: a scale that is not above 0.
        """
        super().__init__(rule)
        if not 0 < instance_logit_scale < math.inf:
            raise ConfigError(
                f"MODEL.PANOPTIC_FUSION.INSTANCE_LOGIT_SCALE is {instance_logit_scale!r}; expected "
                "a finite number above 0; 1.0 is the paper's formula"
            )
        self.instance_logit_scale = instance_logit_scale

    @classmethod
    def from_config(cls, cfg: Any, *, thing_ids: Collection[int]) -> dict[str, Any]:
        scale = cfg.MODEL.PANOPTIC_FUSION.INSTANCE_LOGIT_SCALE
        return {**super().from_config(cfg, thing_ids=thing_ids), "instance_logit_scale": scale}

    def forward(self, sem_seg: Tensor, detections: Detections) -> PanopticMap:
        """See `hadamard_fusion`."""
        return hadamard_fusion(
            sem_seg, detections, self.rule, instance_logit_scale=self.instance_logit_scale
        )
