from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from tests.data.tiny import TinyDataset


@pytest.fixture
def tiny(tmp_path: Path) -> TinyDataset:
    return TinyDataset(tmp_path / "tiny")


@pytest.fixture(autouse=True)
def catalogues() -> Iterator[None]:
    """Put both catalogues back as they were."""
    before = [(catalog, dict(catalog.data)) for catalog in (DatasetCatalog, MetadataCatalog)]
    yield
    for catalog, data in before:
        catalog.data.clear()
        catalog.data.update(data)
