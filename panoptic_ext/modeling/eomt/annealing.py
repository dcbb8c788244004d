"""Mask annealing of EoMT (Kerssies et al., CVPR 2025, section 3.3): how often queries are masked.

Each block that the queries pass has a pair (start, end) of iterations. Before `start` all queries
attend to the patches in their masks alone, from `end` on all attend to all patches. In between,
each query of each image is masked with a probability that falls from 1 to 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Annealing", "annealing_pairs", "mask_probability"]


def annealing_pairs(
    max_iter: int, num_blocks: int, first: Sequence[int] | None = None
) -> tuple[tuple[int, int], ...]:
    """The published rule for the pair of each block.

    Each block takes a sixth of the training. The first starts at a sixth, the last one at two
    thirds of it; those between start at equal distances.

    Args:
        max_iter: iterations of the training.
        num_blocks: blocks that the queries pass, at least 1.
        first: replaces the pair of the first block, as published for DINOv3; None or empty: none.

    Returns:
        (start, end) of each block.
    """
    steps = max(num_blocks - 1, 1)
    pairs = []
    for block in range(num_blocks):
        # start = T / 6 + block * (T / 2) / steps, end = start + T / 6, rounded half up.
        start = max_iter * (steps + 3 * block)
        end = start + max_iter * steps
        pairs.append(((start + 3 * steps) // (6 * steps), (end + 3 * steps) // (6 * steps)))
    if first:
        pairs[0] = (first[0], first[1])
    return tuple(pairs)


def mask_probability(
    iteration: float, pairs: Sequence[tuple[int, int]], power: float
) -> tuple[float, ...]:
    """Probability of each block that a query is masked, 0 to 1.

    Args:
        iteration: of the training, from 0; a part of one under a time budget.
        pairs: (start, end) of each block.
        power: exponent of the curve between them (published: 0.9).
    """
    return tuple(_probability(iteration, start, end, power) for start, end in pairs)


def _probability(iteration: float, start: int, end: int, power: float) -> float:
    if iteration < start:
        return 1.0
    if iteration >= end:
        return 0.0
    return (1 - (iteration - start) / (end - start)) ** power


@dataclass(frozen=True)
class Annealing:
    """The annealing of a training.

    It is a function of the iteration and no state, so that a resumed training goes on exactly.

    Attributes:
        pairs: (start, end) of each block; end is at least start.
        power: see `mask_probability`.
    """

    pairs: tuple[tuple[int, int], ...]
    power: float = 0.9

    def probabilities(self, iteration: float) -> tuple[float, ...]:
        """See `mask_probability`."""
        return mask_probability(iteration, self.pairs, self.power)
