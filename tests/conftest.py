"""Fixtures of all tests: the shared data, one thread, clean catalogues, no GPU where none is."""

from __future__ import annotations

import os
import signal
from collections import Counter
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
from tests.tiny.file_server import FileServer

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


@pytest.fixture(autouse=True)
def warnings_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is logged once a process is logged once a test: no test depends on those before it."""
    from detectron2.utils import logger

    monkeypatch.setattr(logger, "_LOG_COUNTER", Counter())


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
def gpu() -> str:
    """The device of tests marked gpu: "cuda", or what $PANOPTIC_EXT_TEST_DEVICE names.

    With "cpu" they run on any machine, which shows that they are not rotten; what only CUDA can
    show, such as waits, is then not checked.
    """
    return os.environ.get("PANOPTIC_EXT_TEST_DEVICE") or "cuda"


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


@pytest.fixture
def file_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FileServer]:
    """A web server of files on the loopback interface; downloads go into a cache of the test's."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    with FileServer() as server:
        yield server


# Files that take longest, longest first. A file's tests stay in one process, which would otherwise
# work through a long file at the end while the other process has nothing left.
LONGEST = (
    "test_packaging.py",
    "engine/test_train_net.py",
    "docs/test_tutorials.py",
    "modeling/layers/test_ms_deform_attn_triton.py",
    "test_import.py",
    "model_zoo/test_transformers_weights.py",
    "test_install_real.py",
    "modeling/meta_arch/test_mask2former_overfit.py",
    "docs/test_tutorial.py",
    "config/test_configs.py",
    "modeling/meta_arch/test_mask_former.py",
    "modeling/meta_arch/test_eomt_overfit.py",
    "docs/test_extend.py",
    "modeling/meta_arch/test_transformers_panoptic.py",
    "modeling/meta_arch/test_efficientps.py",
    "commands/test_compare_fusions.py",
    "engine/test_interrupted_training.py",
    "engine/test_precision.py",
    "engine/test_trainer.py",
    "test_gpu_suite.py",
    "commands/test_demo.py",
    "commands/test_predict.py",
    "test_import_after_detectron2.py",
    "engine/test_transformers_run.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; tests marked gpu are skipped where torch sees no CUDA device."""
    rank = {ROOT / "tests" / name: number for number, name in enumerate(LONGEST)}
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (rank.get(item.path, len(rank)), item.path not in slow))
    if torch.cuda.is_available() or os.environ.get("PANOPTIC_EXT_TEST_DEVICE"):
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and torch sees none")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
