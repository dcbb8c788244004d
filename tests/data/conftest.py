from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny.panoptic_dataset import TinyDataset


@pytest.fixture
def tiny(tmp_path: Path) -> TinyDataset:
    return TinyDataset(tmp_path / "tiny")


@pytest.fixture(autouse=True)
def catalogues(clean_catalogs: None) -> None:
    """Put both catalogues back as they were."""
