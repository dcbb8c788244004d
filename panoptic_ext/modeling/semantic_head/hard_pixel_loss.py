"""Cross-entropy over the worst pixels of each image.

Shapes: B images, K classes, H x W pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["hard_pixel_cross_entropy"]


def hard_pixel_cross_entropy(
    logits: Tensor, targets: Tensor, *, fraction: float, ignore_value: int
) -> Tensor:
    """Mean cross-entropy over the worst pixels of each image, then over images.

    Source: Rota Bulo, Neuhold and Kontschieder, "Loss Max-Pooling for Semantic Image
    Segmentation", CVPR 2017, in the simple form of EfficientPS (Mohan and Valada, IJCV 2021,
    section 3.3): weight 1 / n for the n worst pixels, 0 for the others.

    Args:
        logits: (B, K, H, W), any float type.
        targets: (B, H, W) int64 class ids in 0..K-1, or `ignore_value`.
        fraction: share of an image's labelled pixels that counts, in (0, 1]; rounded up.
        ignore_value: target of pixels without a label.

    Returns:
        Scalar float32. An image without a labelled pixel adds 0, an empty batch gives 0.
    """
    losses = F.cross_entropy(
        logits.float(), targets, ignore_index=ignore_value, reduction="none"
    ).flatten(1)
    counts = (targets != ignore_value).flatten(1).sum(dim=1)
    if losses.device.type != "cpu":
        return _worst_by_rank(losses, (counts.double() * fraction).ceil())
    labelled = counts.tolist()
    means = [
        worst.topk(math.ceil(fraction * count), sorted=False).values.mean()
        for worst, count in zip(losses, labelled, strict=True)
        if count
    ]
    # The term of 0 connects the loss with the logits even if no pixel is labelled.
    return sum(means, losses.sum() * 0) / max(len(labelled), 1)


def _worst_by_rank(losses: Tensor, wanted: Tensor) -> Tensor:
    """The same for (B, HW) losses and the number of pixels (B,) that count in each image.

    A sort in place of `topk`, which the host would have to give the numbers.
    """
    if not losses.numel():
        return losses.sum() * 0
    ordered = losses.sort(dim=1, descending=True).values
    chosen = torch.arange(losses.shape[1], device=losses.device) < wanted[:, None]
    sums = torch.where(chosen, ordered, 0.0).sum(1)
    return (sums / wanted.clamp(min=1).to(sums.dtype)).mean()
