"""Ids as the bytes of a PNG, and panopticapi's names for ids and colours."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from panoptic_ext import id2rgb, id_to_rgb, read_png_string, rgb2id, rgb_to_id, write_png_string
from panoptic_ext.errors import DatasetError, UnreadableFileError

ids_of_maps = arrays.arrays(
    np.int32, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(0, 2**24 - 1)
)


@settings(max_examples=50, deadline=None)
@given(ids_of_maps)
def test_ids_survive_a_png_string_and_colours(ids):
    np.testing.assert_array_equal(read_png_string(write_png_string(ids)), ids)
    colors = id2rgb(ids)
    np.testing.assert_array_equal(colors, id_to_rgb(ids))
    np.testing.assert_array_equal(rgb2id(colors), rgb_to_id(colors))
    np.testing.assert_array_equal(rgb2id(colors.astype(np.int64)), ids)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**24 - 1))
def test_one_id_and_one_colour(number):
    color = id2rgb(number)
    assert color == [number % 256, number // 256 % 256, number // 65536]
    assert id2rgb(np.int64(number)) == color and isinstance(color, list)
    for form in (color, tuple(color), np.array(color, np.uint8), np.array(color)):
        assert rgb2id(form) == number and isinstance(rgb2id(form), int)


def test_ids_of_a_tensor():
    """Models give panoptic_seg as one."""
    ids = torch.tensor([[0, 70000]], dtype=torch.int32)
    assert id2rgb(ids).tolist() == [[[0, 0, 0], [112, 17, 1]]]
    assert id2rgb(torch.tensor([[7]])).shape == (1, 1, 3) and id2rgb(torch.tensor(7)) == [7, 0, 0]


def test_wrong_colours_and_ids():
    with pytest.raises(DatasetError, match="from 0 to 300; expected 0 to 255"):
        rgb2id([0, 300, 0])
    for wrong in (np.zeros((2, 2)), np.zeros((2, 2, 3)), [1, 2], np.zeros((5, 3), int)):
        with pytest.raises(DatasetError, match="integer colours or one"):
            rgb2id(wrong)
    with pytest.raises(DatasetError, match="do not fit an RGB PNG"):
        id2rgb(2**24)
    with pytest.raises(DatasetError, match="do not fit an RGB PNG"):
        write_png_string(np.full((2, 2), -1))


def test_a_png_string_may_have_alpha_and_be_any_kind_of_bytes():
    stream = io.BytesIO()
    rgba = np.array([[[1, 2, 3, 9]]], np.uint8)
    Image.fromarray(rgba).save(stream, format="PNG")
    for kind in (bytes, bytearray, memoryview):
        assert read_png_string(kind(stream.getvalue())).tolist() == [[1 + 2 * 256 + 3 * 65536]]


def test_damaged_png_strings():
    png = write_png_string(np.random.default_rng(0).integers(0, 2**24, (30, 30)))
    with pytest.raises(UnreadableFileError, match="5 bytes are no PNG; expected"):
        read_png_string(b"hello")
    with pytest.raises(UnreadableFileError, match="the PNG is damaged"):
        read_png_string(png[: len(png) // 2])
