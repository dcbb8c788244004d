"""The order of the files in tests/conftest.py names files that are there."""

from __future__ import annotations

from tests import ROOT
from tests.conftest import LONGEST


def test_files_that_start_first_exist():
    assert [name for name in LONGEST if not (ROOT / "tests" / name).is_file()] == []
    assert len(set(LONGEST)) == len(LONGEST)
