"""EfficientPS (Mohan and Valada, IJCV 2021): Panoptic FPN's wiring with a fusion of logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from detectron2.modeling import META_ARCH_REGISTRY

from panoptic_ext.modeling.backbone.folded_norm import fold_norms
from panoptic_ext.modeling.meta_arch.panoptic_fpn import UnifiedPanopticFPN

__all__ = ["EfficientPS"]


@META_ARCH_REGISTRY.register()
class EfficientPS(UnifiedPanopticFPN):
    """RPN, RoI heads and a semantic head on one backbone; MODEL.PANOPTIC_FUSION merges them.

    As UnifiedPanopticFPN, but the thresholds are those of MODEL.PANOPTIC_FUSION, and the mask head
    must keep logits.
    """

    score_threshold_key: ClassVar[str] = "MODEL.PANOPTIC_FUSION.SCORE_THRESHOLD"
    default_fusion: ClassVar[str] = "hadamard"
    combine_keys: ClassVar[Mapping[str, str]] = {}
    needs_mask_logits: ClassVar[bool] = True

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        ret = super().from_config(cfg)
        # EfficientPS has batch norms in its heads, too, not only in its backbone.
        for part in ("sem_seg_head", "proposal_generator", "roi_heads"):
            fold_norms(ret[part])
        return ret

    @classmethod
    def with_mask_logits(cls, cfg: Any) -> Any:
        """The config as it is. EfficientPS' mask heads keep logits; others are refused later."""
        return cfg
