"""docs/docstrings.py: what the API reference reads of this project's docstrings."""

from __future__ import annotations

import pytest

pytest.importorskip("griffe", reason="the extra docs is not installed")

from docs.docstrings import indented, separated


def test_an_entry_of_several_arguments_is_one_of_each() -> None:
    text = "Sum.\n\nArgs:\n    height, width: of the image,\n        pixels.\n    z: other."
    assert separated(text) == (
        "Sum.\n\nArgs:\n    height: of the image,\n        pixels.\n"
        "    width: of the image,\n        pixels.\n    z: other."
    )


def test_arguments_in_the_first_line_are_indented_again() -> None:
    text = "Args (all by keyword):\n\nx: the first\n    of two.\ny: other.\n\nRaises:\n    E: no."
    assert indented(text) == (
        "Args:\n    x: the first\n        of two.\n    y: other.\n\nRaises:\n    E: no."
    )
    assert indented("Args:\n    x: as it is.") == "Args:\n    x: as it is."
    assert indented("Args of a program.") == "Args of a program."
