"""Parts of messages: values of users, names that do not exist, and lists of names."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from detectron2.utils.registry import Registry
from hypothesis import given
from hypothesis import strategies as st

from panoptic_ext.errors import (
    ConfigError,
    DatasetError,
    check_known,
    listed,
    look_up,
    nearest,
    quoted,
    shortened,
    unknown,
)
from tests import ROOT


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


NAMES = st.lists(st.text("abcxyz_", min_size=1, max_size=6), unique=True, max_size=12)


@given(NAMES, st.text("abcxyz_", min_size=1, max_size=6), st.integers(0, 5), st.booleans())
def test_an_unknown_name_is_reported_with_the_nearest_and_the_known_ones(
    known: list[str], value: str, limit: int, mends: bool
) -> None:
    mend = "leave it out" if mends else ""
    text = unknown("KEY", value, known, limit=limit, mend=mend)
    assert text.startswith(f"unknown KEY {value!r}") and text.endswith(mend)
    hint = re.search(r"; did you mean '(\w+)'\?", text)
    assert (hint is None) == (nearest(value, known) == "")
    assert hint is None or hint[1] in known
    assert ("known: " in text) == (limit > 0)
    if limit:
        rest = text.partition("known: ")[2].removesuffix(f"; {mend}" if mends else "")
        assert rest == (listed(known, limit, show=str) or "none")
    assert "?;" not in text and ";;" not in text and "  " not in text


# Integers of 64 bits: `quoted` abbreviates those of more than 120.
@given(
    st.lists(st.integers(-(2**63), 2**63 - 1)),
    st.integers(1, 20),
    st.sampled_from([", ", "; ", "\n  "]),
)
def test_the_first_few_are_listed_and_the_others_counted(
    values: list[int], limit: int, separator: str
) -> None:
    text = listed(iter(values), limit, separator=separator)
    shown, _, count = text.partition("and ") if len(values) > limit else (text, "", "0 more")
    assert int(count.removesuffix(" more")) == max(len(values) - limit, 0)
    numbers = shown.strip("; \n")
    assert [int(v) for v in numbers.split(separator) if v] == values[:limit]


def test_a_list_keeps_any_value_short() -> None:
    assert listed(["x" * 10**6] * 9, 2).endswith("x' and 7 more")
    assert len(listed(["x" * 10**6] * 9, 2)) < 250
    assert listed(["a, b", "c"], separator="; ", show=str) == "a, b; c"


def test_a_value_that_cannot_be_hashed_is_unknown_too() -> None:
    check_known("KEY", "a", {"a": 1})
    with pytest.raises(DatasetError, match=r"^unknown KEY \['a'\]; known: a$"):
        check_known("KEY", ["a"], {"a": 1}, error=DatasetError)


def test_a_name_is_looked_up_in_a_registry_or_is_an_error_of_the_config() -> None:
    registry = Registry("SOME")
    registry._do_register("first", dict)
    registry._do_register("second", list)
    assert look_up(registry, "MODEL.NAME", "second") is list
    message = r"^unknown MODEL.NAME 'fist'; did you mean 'first'\? known: first, second$"
    with pytest.raises(ConfigError, match=message):
        look_up(registry, "MODEL.NAME", "fist")


def test_names_that_do_not_exist_have_one_wording() -> None:
    """`nearest` is called by `unknown`; alone where the name is half of a dotted key, where
    several names are missing at once, and where a pattern, or a name in Detectron2's own message,
    was looked for among the names of the zoo."""
    users = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "panoptic_ext").rglob("*.py"))
        if "nearest(" in path.read_text()
    ]
    assert users == [
        "panoptic_ext/commands/zoo.py",
        "panoptic_ext/config/yaml_reader.py",
        "panoptic_ext/data/map_categories.py",
        "panoptic_ext/errors.py",
        "panoptic_ext/evaluation/truth.py",
        "panoptic_ext/model_zoo/detectron2_answers.py",
    ]
