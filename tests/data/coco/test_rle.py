"""Run lengths equal pycocotools' on good ones and are errors where they are damaged."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.data.coco.rle import decode_window, run_lengths
from panoptic_ext.errors import EvaluationError


def encode(mask: np.ndarray) -> dict:
    return mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))


def dense(lengths: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, bool)
    window, top, left = decode_window(lengths, size[0])
    mask[top : top + window.shape[0], left : left + window.shape[1]] = window
    return mask


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 60), st.integers(1, 60), st.integers(0, 999), st.floats(0, 1), st.booleans()
)  # fmt: skip
def test_equals_pycocotools(height, width, seed, share, smooth):
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < share
    if smooth:  # long runs
        mask = np.zeros((height, width), bool)
        mask[rng.integers(0, height) :, rng.integers(0, width) : rng.integers(1, width + 1)] = True
    rle = encode(mask)
    lengths = run_lengths(rle, mask.shape, "here")
    np.testing.assert_array_equal(dense(lengths, mask.shape), mask)
    window, _, _ = decode_window(lengths, height)
    assert mask.any() == bool(window.size)
    if window.size:  # tight
        assert window[0].any() and window[-1].any() and window[:, 0].any() and window[:, -1].any()
    text = {**rle, "counts": rle["counts"].decode()}
    np.testing.assert_array_equal(run_lengths(text, mask.shape, "here"), lengths)
    listed = {**rle, "counts": lengths.tolist()}
    np.testing.assert_array_equal(run_lengths(listed, mask.shape, "here"), lengths)


def test_large_runs():
    mask = np.zeros((2000, 3000), bool)
    mask[700:900, 1200:2900] = True
    np.testing.assert_array_equal(
        dense(run_lengths(encode(mask), mask.shape, ""), mask.shape), mask
    )


GOOD = encode(np.eye(5, 7))["counts"].decode()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "here: the segmentation is None; expected run lengths"),
        ([[1.0, 2.0, 3.0, 4.0]], "the segmentation is polygons"),
        ({"size": [5, 7]}, "expected run lengths"),
        ({"size": [7, 5], "counts": GOOD}, r"a mask of size \[7, 5\]; expected \[5, 7\]"),
        ({"size": None, "counts": GOOD}, r"a mask of size None; expected \[5, 7\]"),
        ({"size": [5, 7], "counts": ""}, "runs of 0 pixels in all, not 35"),
        ({"size": [5, 7], "counts": GOOD[:-1]}, "cannot be read"),
        ({"size": [5, 7], "counts": GOOD + "99"}, "pixels in all, not 35"),
        ({"size": [5, 7], "counts": "P"}, "they end within a number"),
        ({"size": [5, 7], "counts": "ü"}, "characters outside of '0' to 'o'"),
        ({"size": [5, 7], "counts": GOOD + "\0"}, "characters outside of '0' to 'o'"),
        ({"size": [5, 7], "counts": "T" * 40 + "1"}, "a number that is too large"),
        ({"size": [5, 7], "counts": [40, -5]}, "a run of less than 0 pixels"),
        ({"size": [5, 7], "counts": [10, 2]}, "runs of 12 pixels in all, not 35"),
        ({"size": [5, 7], "counts": [35.0]}, "neither a string nor a list of whole numbers"),
        ({"size": [5, 7], "counts": 35}, "neither a string nor a list of whole numbers"),
        ({"size": [5, 7], "counts": [2**80]}, "cannot be read"),
    ],
)
def test_damaged_run_lengths(segmentation, message):
    with pytest.raises(EvaluationError, match=message):
        run_lengths(segmentation, (5, 7), "here")
