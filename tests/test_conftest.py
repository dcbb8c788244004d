"""The order of the files in tests/conftest.py names files that are there."""

from __future__ import annotations

from tests import ROOT
from tests.conftest import LONGEST


def test_the_longest_files_are_there():
    assert [name for name in LONGEST if not (ROOT / "tests" / name).is_file()] == []
    assert len(set(LONGEST)) == len(LONGEST)
