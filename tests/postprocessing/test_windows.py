"""Places of windows against EoMT's formula, and their mean by hand."""

from __future__ import annotations

import itertools
import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from panoptic_ext.postprocessing.windows import WindowMean, window_starts


@given(st.integers(1, 5000), st.integers(1, 1300))
def test_windows_cover_an_axis(length: int, side: int) -> None:
    starts = window_starts(length, side)
    assert len(starts) == math.ceil(length / side)
    assert starts[0] == 0 and starts[-1] + min(side, length) == length
    steps = [after - before for before, after in itertools.pairwise(starts)]
    assert all(0 < step <= side for step in steps)
    assert not steps or max(steps) - min(steps) <= 1


@given(st.integers(0, 4000), st.sampled_from([64, 512, 640, 1024]))
def test_starts_are_those_of_the_published_formula(more: int, side: int) -> None:
    length = side + more
    count = math.ceil(length / side)
    overlap = (count * side - length) / (count - 1) if count > 1 else 0
    expected = [int(j * (side - overlap)) for j in range(count)]
    # The formula in floating point may fall one pixel short; the axis is then not covered.
    assert expected == window_starts(length, side) or expected[-1] + side < length


def test_mean_by_hand() -> None:
    mean = WindowMean((1, 4))
    mean.add(torch.tensor([[[1.0, 2.0]]]), 0, 0)
    mean.add(torch.tensor([[[4.0, 6.0]]]), 0, 1)
    assert mean.mean((1, 4)).tolist() == [[[1.0, 3.0, 6.0, 0.0]]]


def test_half_precision_is_summed_in_full() -> None:
    mean = WindowMean((2, 2))
    for value in (2048.0, 1.0):
        mean.add(torch.full((1, 2, 2), value, dtype=torch.bfloat16), 0, 0)
    scores = mean.mean((4, 6))
    assert scores.shape == (1, 4, 6) and scores.dtype == torch.float32
    assert scores.unique().tolist() == [1024.5]
