"""Packages of the extras: imported, or an error that says how to install them."""

from __future__ import annotations

import sys

import pytest

from panoptic_ext.errors import CheckpointError
from panoptic_ext.optional_packages import import_optional


def test_a_package_that_is_there_is_imported() -> None:
    assert import_optional("json", "hf", "this") is sys.modules["json"]


def test_a_missing_package_is_an_error_of_the_wished_class(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "json", None)
    with pytest.raises(CheckpointError, match=r"^this needs the package json, .*ext\[hf\]'$"):
        import_optional("json", "hf", "this", error=CheckpointError)
