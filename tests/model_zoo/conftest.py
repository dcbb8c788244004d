"""Every test has a zoo of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny.zoo import own_zoo as own_zoo
from tests.tiny.zoo import served as served
from tests.tiny.zoo import tiny_entry as tiny_entry
from tests.tiny.zoo import zoo_run as zoo_run


@pytest.fixture(autouse=True)
def with_own_zoo(own_zoo: Path) -> None:
    """See `own_zoo`."""
