"""Mask annealing: the published table, the curve, and its limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panoptic_ext.modeling.eomt.annealing import Annealing, annealing_pairs, mask_probability

# Of the published configs (github.com/tue-mps/eomt, configs/): iterations, starts, ends.
DINOV2 = {
    "COCO, L, 12 epochs": (
        88_692, [14782, 29564, 44346, 59128], [29564, 44346, 59128, 73910],
    ),
    "COCO, S and B, 24 epochs": (177_384, [29564, 73910, 118256], [59128, 103474, 147820]),
    "COCO, g": (
        88_692,
        [14782, 25869, 36955, 48042, 59128],
        [14782 + 14782, 25869 + 14782, 36955 + 14782, 48042 + 14782, 59128 + 14782],
    ),
    "ADE20K, L": (39_120, [6520, 13040, 19560, 26080], [13040, 19560, 26080, 32600]),
    "ADE20K, g": (
        39_120, [6520, 11410, 16300, 21190, 26080], [13040, 17930, 22820, 27710, 32600],
    ),
    "Cityscapes, L": (19_902, [3317, 6634, 9951, 13268], [6634, 9951, 13268, 16585]),
}  # fmt: skip
DINOV3 = {
    "ADE20K, L, semantic": (19_560, [0, 6520, 9780, 13040], [3000, 9780, 13040, 16300]),
    "COCO, L": (88_692, [0, 29564, 44346, 59128], [3000, 44346, 59128, 73910]),
    "COCO, S and B": (177_384, [0, 73910, 118256], [3000, 103474, 147820]),
}
ROWS = [(*row, None) for row in DINOV2.values()] + [(*row, (0, 3000)) for row in DINOV3.values()]


@pytest.mark.parametrize(("max_iter", "starts", "ends", "first"), ROWS, ids=[*DINOV2, *DINOV3])
def test_the_rule_gives_the_published_pairs(max_iter, starts, ends, first):
    pairs = annealing_pairs(max_iter, len(starts), first)
    assert len(pairs) == len(starts)
    for (start, end), published_start, published_end in zip(pairs, starts, ends, strict=True):
        assert abs(start - published_start) <= 1
        assert abs(end - published_end) <= 1


def test_one_block_has_the_first_window():
    assert annealing_pairs(600, 1) == ((100, 200),)


@given(st.integers(6, 10**6), st.integers(1, 12))
def test_windows_lie_in_order_within_the_training(max_iter, num_blocks):
    pairs = annealing_pairs(max_iter, num_blocks)
    starts, ends = zip(*pairs, strict=True)
    assert sorted(starts) == list(starts) and sorted(ends) == list(ends)
    assert all(0 < start < end < max_iter for start, end in pairs)


def test_the_curve():
    """By hand: 1 before the start, (1 - progress) ** 0.9 from it on, 0 from the end on."""
    pairs = ((100, 200), (150, 150))
    found = [mask_probability(at, pairs, 0.9) for at in (0, 99, 100, 150, 199, 200, 10**9)]
    first = [1.0, 1.0, 1.0, 0.5**0.9, 0.01**0.9, 0.0, 0.0]
    second = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]  # an empty window is a step
    assert found == [pytest.approx(pair) for pair in zip(first, second, strict=True)]


@given(st.integers(0, 2000), st.integers(0, 500), st.integers(0, 500), st.floats(0.1, 3))
def test_probabilities_never_grow(iteration, start, length, power):
    annealing = Annealing(((start, start + length),), power)
    (now,), (then,) = annealing.probabilities(iteration), annealing.probabilities(iteration + 1)
    assert 0 <= then <= now <= 1
