"""Losses and matching costs of mask classification, as functions of tensors.

Shapes: B images, Q queries, K classes (class K is "no object"), M matched masks, N targets,
P points. Source: Cheng et al., "Masked-attention Mask Transformer", section 3.3 and appendix.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "balanced_weights",
    "box_loss",
    "centre_loss",
    "class_cost",
    "classification_loss",
    "mask_costs",
    "point_dice_losses",
    "point_mask_losses",
    "semantic_loss",
]


def classification_loss(
    logits: Tensor, classes: Tensor, weight: Tensor, total: Tensor | None = None
) -> Tensor:
    """Weighted cross-entropy over all queries, divided by the sum of the weights.

    Args:
        logits: (..., B, Q, K + 1).
        classes: (..., B, Q) int64, K where a query has no object.
        weight: (K + 1,) float32.
        total: divisor, of the batch that the images are a part of; None: the sum of the weights.

    Returns:
        (...) float32; 0 with gradient where the weights sum to 0, which they do for a batch
        without objects if "no object" has no weight.
    """
    logits, flat = logits.float().flatten(0, -2), classes.reshape(-1)
    each = F.cross_entropy(logits, flat, weight, reduction="none").view(classes.shape)
    if total is None:
        total = weight[flat].view(classes.shape).sum((-2, -1))
    return each.sum((-2, -1)) / total.clamp(min=torch.finfo(weight.dtype).tiny)


def balanced_weights(labels: Tensor, num_classes: int, balance: float) -> Tensor:
    """Weights of classes that are to count more the rarer they are in `labels`.

    A label of a class that n labels have weighs n ** -balance, times a factor for which the weights
    of all labels add up to their number.

    Args:
        labels: of any shape, int64; those outside of 0 to K - 1 do not count.
        num_classes: K.
        balance: 0 (every label counts the same) to 1 (every class that is there does).

    Returns:
        (K,) float32, 1 for a class without labels; the host does not wait for the device.
    """
    flat = labels.reshape(-1)
    flat = torch.where((flat >= 0) & (flat < num_classes), flat, num_classes)
    counts = torch.zeros(num_classes + 1, device=labels.device)
    counts = counts.scatter_add_(0, flat, torch.ones_like(flat, dtype=counts.dtype))[:-1]
    weights = counts.clamp(min=1) ** -balance
    weights = weights * (counts.sum() / (weights * counts).sum().clamp(min=1e-6))
    return torch.where(counts > 0, weights, 1.0)


def point_mask_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy at points, mean over the points of each mask.

    Args:
        logits: (M, P).
        targets: (M, P), 0 to 1.

    Returns:
        (M,) float32.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none").mean(1)


def point_dice_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """One minus the Dice coefficient at points, smoothed by +1, of each mask.

    Arguments and result as those of `point_mask_losses`.
    """
    inside = logits.float().sigmoid()
    overlap = 2 * (inside * targets).sum(1) + 1
    return 1 - overlap / (inside.sum(1) + targets.sum(1) + 1)


def semantic_loss(
    logits: Tensor, labels: Tensor, balance: float = 0.0, of_batch: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy over labelled pixels, 0 with gradient where there is none.

    Args:
        logits: (B, K, h, w).
        labels: (B, h, w) int64, -1 for void.
        balance: how far rare classes weigh more, see `balanced_weights`.
        of_batch: (B', h, w), labels of the batch that the images are a part of; None: `labels`.

    Returns:
        Scalar float32.
    """
    of_batch = labels if of_batch is None else of_batch
    weight = balanced_weights(of_batch, logits.shape[1], balance) if balance else None
    total = F.cross_entropy(logits.float(), labels, weight, ignore_index=-1, reduction="sum")
    return total / (of_batch >= 0).sum().clamp(min=1)


def centre_loss(logits: Tensor, targets: Tensor, total: Tensor | None = None) -> Tensor:
    """Quality focal loss (Li et al., NeurIPS 2020) of a map of object centres.

    Args:
        logits: (B, 1, h, w).
        targets: (B, 1, h, w), 1 at the centre of an object, falling to 0.
        total: sum of t over the batch that the images are a part of; None: over the images.

    Returns:
        Scalar float32: the sum of |s(x) - t|^2 BCE(x, t) over the sum of t, which is at least 1.
    """
    logits = logits.float()
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    weight = (logits.sigmoid() - targets).square()
    total = targets.sum() if total is None else total
    return (weight * entropy).sum() / total.clamp(min=1)


def box_loss(
    boxes: Tensor, targets: Tensor, weights: Tensor, total: Tensor | None = None
) -> Tensor:
    """Relative error of the boxes that the cells of a map predict.

    Args:
        boxes, targets: (B, 4, h, w), middle x and y and half width and height, in [0, 1].
        weights: (B, 1, h, w), 0 where a cell has no box.
        total: sum of the weights of the batch that the images are a part of; None: of the images.

    Returns:
        Scalar float32: the weighted mean over cells of |difference of middles| / half sides and
        |log of the quotient of half sides|, averaged over these four.
    """
    middle, half = boxes.chunk(2, dim=1)
    true_middle, true_half = targets.chunk(2, dim=1)
    error = (middle - true_middle).abs() / true_half + (half / true_half).log().abs()
    total = weights.sum() if total is None else total
    return (weights * error).sum() / (4 * total.clamp(min=1))


def class_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the probability of each target's class.

    Args:
        logits: (..., Q, K + 1).
        labels: (N,) int64, 0 to K - 1.

    Returns:
        (..., Q, N) float32.
    """
    return -logits.float().softmax(-1).index_select(-1, labels)


def mask_costs(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and Dice of every query with every target, at common points.

    -t log s(x) - (1 - t) log(1 - s(x)) = softplus(x) - x t, so that the cross-entropy of all pairs
    is one matrix product.

    Args:
        logits: (..., Q, P) float32.
        targets: (..., N, P) float32, 0 to 1.

    Returns:
        Cross-entropy (..., Q, N), mean over the points, and Dice cost (..., Q, N), +1 smoothed;
        float32.
    """
    columns = targets.mT
    inside = logits.sigmoid()
    bce = (_softplus_sum(logits, inside) - logits @ columns) / logits.shape[-1]
    overlap = 2 * (inside @ columns) + 1
    areas = inside.sum(-1, keepdim=True) + targets.sum(-1)[..., None, :]
    return bce, 1 - overlap / (areas + 1)


def _softplus_sum(logits: Tensor, inside: Tensor) -> Tensor:
    """Sum of softplus over the points.

    softplus(x) = max(x, 0) - log s(|x|) with s(|x|) in [0.5, 1]. The sum of 16 logarithms is the
    logarithm of their product, which saves 15 of 16 slow logarithms.

    Args:
        logits: (..., Q, P) float32.
        inside: (..., Q, P), their sigmoids.

    Returns:
        (..., Q, 1) float32.
    """
    likelier = (inside - 0.5).abs_().add_(0.5)
    if likelier.shape[-1] % 16:
        likelier = F.pad(likelier, (0, -likelier.shape[-1] % 16), value=1.0)
    logs = likelier.unflatten(-1, (16, -1)).prod(-2).log()
    return logits.relu().sum(-1, keepdim=True) - logs.sum(-1, keepdim=True)


def empty_class_weight(num_classes: int, no_object_weight: float) -> Tensor:
    """Weights (K + 1,) of the classification loss: 1 for a class, less for "no object"."""
    weight = torch.ones(num_classes + 1)
    weight[-1] = no_object_weight
    return weight
