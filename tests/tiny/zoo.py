"""Fixtures: a zoo of one's own, of which nothing stays, and an entry of a tiny model in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from panoptic_ext import model_zoo
from panoptic_ext.model_zoo import catalog, licences
from panoptic_ext.model_zoo.entry import ZooEntry
from panoptic_ext.model_zoo.from_run import entry_from_run
from tests.tiny.file_server import FileServer
from tests.tiny.finished_run import NAME, finished_run


@pytest.fixture
def own_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_catalogs: None) -> Path:
    """The folder of the cache, which is empty."""
    catalog.names()  # read once for all tests
    copy = catalog._Catalog()
    copy.by_name, copy.environment = dict(catalog._catalog.by_name), ""
    monkeypatch.setattr(catalog, "_catalog", copy)
    monkeypatch.setattr(licences, "_told", set())
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(catalog.ENVIRONMENT, raising=False)
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def zoo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished run of a tiny model."""
    folder = tmp_path_factory.mktemp("zoo_run")
    datasets, metadata = dict(DatasetCatalog.data), dict(MetadataCatalog.data)
    finished_run(folder)
    for registered, before in ((DatasetCatalog, datasets), (MetadataCatalog, metadata)):
        registered.data.clear()
        registered.data.update(before)
    assert NAME not in DatasetCatalog
    return folder / "run"


@pytest.fixture
def tiny_entry(zoo_run: Path, own_zoo: Path, tmp_path: Path) -> ZooEntry:
    """An entry of that run in a folder of its own; it is not in the catalogue."""
    return entry_from_run(
        str(zoo_run),
        "tiny_street",
        str(tmp_path / "published"),
        licence="CC BY 4.0",
        commercial_use=True,
        source="tests",
    )


def changed(entry: ZooEntry, **changes: Any) -> ZooEntry:
    """The entry with other values in its file, added to the zoo; None leaves a key out."""
    content = yaml.safe_load(Path(entry.path).read_text()) | changes
    content = {key: value for key, value in content.items() if value is not None}
    Path(entry.path).write_text(yaml.safe_dump(content))
    model_zoo.add(entry.path)
    return model_zoo.info(content["name"])


@pytest.fixture
def served(tiny_entry: ZooEntry, file_server: FileServer) -> ZooEntry:
    """The entry with an address; its file is no longer beside it."""
    path = Path(tiny_entry.folder) / "tiny_street.pth"
    address = file_server.add("zoo/tiny_street.pth", path.read_bytes())
    path.unlink()
    return changed(tiny_entry, weights={"address": address})
