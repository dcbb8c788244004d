"""The Hadamard fusion of EfficientPS (Mohan and Valada, IJCV 2021, section 3.4), streaming.

Symbols of the paper: MLA are an instance's mask logits, MLB the semantic logits of its class, FL
the fused logits. EfficientPS stacks FL of all instances and takes an argmax. Here one instance
after the other is compared with the best logit so far, inside its box only. Time is
O(K H W + sum of box areas), memory O(H W).

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
    # The first factor, in 0..2, is the confidence of both. If both deny the object, the factor and
    # FL are near 0: FL then loses to positive stuff logits, but not by the full sum of the logits.
    confidence = instance_mask_logits.sigmoid().add_(semantic_mask_logits.sigmoid())
    return confidence.mul_(instance_mask_logits + semantic_mask_logits)


@torch.no_grad()
def hadamard_fusion(
    sem_seg: Tensor,
    detections: Detections,
    rule: FusionRule,
    *,
    instance_logit_scale: float = 1.0,
) -> PanopticMap:
    """Give each pixel to the larger of the best stuff logit and the instances' fused logits.

    An instance wins pixels only inside its box; without stuff classes, instances win all pixels of
    their boxes. In a tie stuff wins over instances, and the instance of higher score over others.
    The arithmetic is float32 whatever the types of the arguments. For the rule's overlap threshold,
    a mask is the pixels whose mask logit is above 0.

    Args:
        sem_seg: (K, H, W) logits, channel = contiguous id.
        detections: N instances; see `Detections`.
        rule: classes and thresholds; see `FusionRule`.
        instance_logit_scale: factor on MLA; 1 is the paper's formula, the published code uses 4.

    Returns:
        See `PanopticMap`; things by descending score.

    Raises:
        ValueError: `sem_seg` does not have K channels, or an instance's class is not a thing.
    """
    rule.check_channels(sem_seg)
    stuff_ids = rule.stuff_ids
    instances = select_instances(detections, rule, (sem_seg.shape[1], sem_seg.shape[2]))
    with torch.autocast(sem_seg.device.type, enabled=False):
        best, stuff = best_stuff(
            sem_seg, thing_ids=rule.thing_ids, stuff_ids=stuff_ids, void_policy=rule.void_policy
        )
        # The order decides ties, because `update_best` replaces smaller values only: stuff comes
        # first, then the instances by descending score.
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
                    # On an accelerator the host does not wait for `kept`. An instance that is
                    # discarded therefore competes, but with -inf, which wins no pixel.
                    fused.masked_fill_(~kept, -torch.inf)
                update_best(fused, code, best=region[rows], codes=codes[rows])
        return assemble_segments(things, stuff, instances, stuff_ids, rule.stuff_area_threshold)


@PANOPTIC_FUSION_REGISTRY.register_as("hadamard")
class HadamardFusion(PanopticFusion):
    """The fusion of EfficientPS: see `hadamard_fusion`."""

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
