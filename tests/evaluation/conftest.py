"""The toy data set, registered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny import predictions as toy


@pytest.fixture
def name(tmp_path: Path) -> Iterator[str]:
    """Of a registered toy data set under `tmp_path`."""
    yield toy.register(tmp_path, "toy_panoptic")
    toy.unregister("toy_panoptic")
