"""Semantic head of Panoptic FPN. Shapes: B images, K classes, H x W pixels, stride s."""

from __future__ import annotations

from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from torch import Tensor
from torch.nn import functional as F

__all__ = ["VoidSafeSemSegFPNHead"]


@SEM_SEG_HEADS_REGISTRY.register()
class VoidSafeSemSegFPNHead(SemSegFPNHead):
    """Detectron2's SemSegFPNHead, with a loss of 0 instead of NaN where a batch is all void.

    A crop of sparsely labelled data can have no labelled pixel at all. The mean over an empty set
    is NaN, which would end the training.
    """

    def losses(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Mean cross-entropy over labelled pixels.

        Args:
            predictions: (B, K, H/s, W/s) logits, any float type.
            targets: (B, H, W) int64 class ids, `ignore_value` where void.

        Returns:
            {"loss_sem_seg": scalar}, weighted.
        """
        logits = F.interpolate(
            predictions.float(),
            scale_factor=self.common_stride,
            mode="bilinear",
            align_corners=False,
        )
        total = F.cross_entropy(logits, targets, reduction="sum", ignore_index=self.ignore_value)
        labelled = (targets != self.ignore_value).sum().clamp(min=1)
        return {"loss_sem_seg": total / labelled * self.loss_weight}
