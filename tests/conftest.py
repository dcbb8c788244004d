"""Fixtures of all tests: the shared data, one thread, clean catalogues, no GPU where none is."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported: small tensors on many threads are slower, and workers share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

# A shell's background job starts with SIGINT ignored, which the commands respect: tests of Ctrl-C
# need it as in a terminal, and programs that they start inherit it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests import ROOT
from tests.shared_data import shared_data_folder

# A machine that is busy with other work draws and runs examples slowly, which is no fault of a
# test. A test's own settings are on top of these.
settings.register_profile(
    "busy_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy_machine")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Keep torch to the threads that OMP_NUM_THREADS allows, 1 by default."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real data sets (facade, nuclei): $PANOPTIC_EXT_SHARED or ../shared/data."""
    folder = shared_data_folder()
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is missing (PANOPTIC_EXT_SHARED names another folder)")
    return folder


@pytest.fixture
def clean_catalogs() -> Iterator[None]:
    """Forget every data set and metadata that the test registered, and what it read of others."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    datasets, metadata = dict(DatasetCatalog.data), dict(MetadataCatalog.data)
    values = {name: dict(vars(entry)) for name, entry in metadata.items()}
    yield
    for catalog, before in ((DatasetCatalog, datasets), (MetadataCatalog, metadata)):
        catalog.data.clear()
        catalog.data.update(before)
    for name, entry in metadata.items():
        vars(entry).clear()
        vars(entry).update(values[name])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first; tests marked gpu are skipped where torch sees no CUDA device."""
    # At the end one process would work through a slow file while the others have nothing left.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and torch sees none")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
