"""Matching costs and losses of mask classification, one number at a time, from the definitions."""

from __future__ import annotations

import math

import numpy as np


def softmax(row: np.ndarray) -> np.ndarray:
    powers = np.exp(row.astype(np.float64) - row.max())
    return powers / powers.sum()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def cross_entropy(logit: float, target: float) -> float:
    """-t log s(x) - (1 - t) log(1 - s(x)), without overflow."""
    log_inside = -math.log1p(math.exp(-logit)) if logit > -30 else logit
    log_outside = -math.log1p(math.exp(logit)) if logit < 30 else -logit
    return -target * log_inside - (1 - target) * log_outside


def mask_term(logits: np.ndarray, targets: np.ndarray) -> float:
    pairs = zip(logits.tolist(), targets.tolist(), strict=True)
    return sum(cross_entropy(x, t) for x, t in pairs) / len(logits)


def dice_term(logits: np.ndarray, targets: np.ndarray) -> float:
    inside = [sigmoid(x) for x in logits.tolist()]
    both = sum(p * t for p, t in zip(inside, targets.tolist(), strict=True))
    return 1 - (2 * both + 1) / (sum(inside) + sum(targets.tolist()) + 1)


def cost_matrix(
    class_logits: np.ndarray,
    labels: np.ndarray,
    mask_logits: np.ndarray,
    targets: np.ndarray,
    weights: tuple[float, float, float] = (2, 5, 5),
) -> np.ndarray:
    """(Q, N) float64; weights of the class, mask and Dice terms."""
    of_class, of_mask, of_dice = weights
    cost = np.zeros((len(class_logits), len(labels)))
    for q in range(len(class_logits)):
        for n in range(len(labels)):
            cost[q, n] = (
                -of_class * softmax(class_logits[q])[labels[n]]
                + of_mask * mask_term(mask_logits[q], targets[n])
                + of_dice * dice_term(mask_logits[q], targets[n])
            )
    return cost


def class_loss(class_logits: np.ndarray, classes: np.ndarray, no_object_weight: float) -> float:
    """(Q, K + 1) and (Q,), K for no object."""
    total = weights = 0.0
    for logits, label in zip(class_logits, classes.tolist(), strict=True):
        weight = no_object_weight if label == len(logits) - 1 else 1.0
        total -= weight * math.log(softmax(logits)[label])
        weights += weight
    return total / weights
