"""Values of users in messages stay short (case 22)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from panoptic_ext.errors import quoted, shortened


@pytest.mark.parametrize(
    "value",
    [7, -1.5, None, True, "it's", b"\x00", (), (1,), [1, [2, {"a": (3, 4)}]], {}, {1: "b"}],
)
def test_a_short_value_is_quoted_as_repr_does(value: Any) -> None:
    assert quoted(value) == repr(value)


def _nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        _nested(900),
        _nested(100_000),
        "x" * 10**6,
        b"x" * 10**6,
        10**6000,
        list(range(10**5)),
        [[["y" * 10**6] * 9] * 9] * 9,
        {i: dict.fromkeys(range(99), "z" * 99) for i in range(99)},
        set(range(10**4)),
        np.arange(10**4),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_value_is_quoted_within_the_bound(value: Any) -> None:
    assert 3 < len(quoted(value)) <= 100
    assert len(quoted(value, 30)) <= 30


def test_an_array_is_quoted_in_one_line() -> None:
    assert quoted(np.zeros((2, 2))) == "array([[0., 0.], [0., 0.]])"


def test_a_value_whose_repr_fails_is_quoted_by_its_kind() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    assert quoted(Broken()) == "<Broken>"


def test_a_text_that_is_too_long_keeps_both_ends() -> None:
    assert shortened("a" * 80) == "a" * 80
    assert shortened("abcdefghijkl", 9) == "abc...jkl"
    assert shortened("abcdefghijkl", 10) == "abcd...jkl"
