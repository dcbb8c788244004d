"""Errors about images that do not fit into memory: what they need and how to mend it."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from panoptic_ext.engine import memory_errors
from panoptic_ext.engine.memory_errors import explained_memory_errors
from panoptic_ext.errors import MemoryNeededError

# As torch says it.
_GPU = (
    "CUDA out of memory. Tried to allocate 4.50 GiB. GPU 0 has a total capacity of 79.11 GiB of "
    "which 1.2 GiB is free."
)


def test_a_tensor_that_the_processor_has_no_memory_for_is_put_down_to_the_image() -> None:
    with (
        pytest.raises(MemoryNeededError, match=r"13000 x 13000 .*169 million") as raised,
        explained_memory_errors(13000, 13000),
    ):
        torch.empty(1 << 60, dtype=torch.uint8)  # no machine has an exabyte

    assert "one step alone asks for 1.2 EB" in str(raised.value)
    assert "half the height and width need a quarter" in str(raised.value)
    assert len(str(raised.value)) < 400


def test_an_array_and_a_bare_error_are_explained_too() -> None:
    with pytest.raises(MemoryNeededError, match="asks for"), explained_memory_errors(10, 10):
        np.empty(1 << 60, np.uint8)
    with pytest.raises(MemoryNeededError, match="4 bytes a pixel"), explained_memory_errors(9, 9):
        raise MemoryError


def test_a_gpu_is_named_and_the_processor_offered() -> None:
    with (
        pytest.raises(MemoryNeededError, match=r"GPU's memory: .* 4\.8 GB .*or MODEL.DEVICE cpu"),
        explained_memory_errors(5000, 5000),
    ):
        raise torch.OutOfMemoryError(_GPU)


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), explained_memory_errors(9, 9):
        raise RuntimeError("shapes differ")


def test_more_than_the_free_memory_is_an_error_before_the_system_kills(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Linux grants both tensors, and kills the process that writes into them."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    monkeypatch.setattr(memory_errors, "free_memory", lambda: 300 << 20)
    torch.empty(1 << 30, dtype=torch.uint8)
    with (
        pytest.raises(MemoryNeededError, match=r"asks for 1\.1 GB"),
        explained_memory_errors(4000, 4000),
    ):
        torch.empty(200 << 20, dtype=torch.uint8)  # fits
        torch.empty(1 << 30, dtype=torch.uint8)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    with explained_memory_errors(400, 400):  # too small to matter
        torch.empty(1 << 30, dtype=torch.uint8)


def test_a_container_has_less_than_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_errors, "_CGROUP", str(tmp_path))
    machine = memory_errors.free_memory()
    assert machine is not None and machine > 1 << 20
    (tmp_path / "memory.max").write_text(f"{1 << 20}\n")
    (tmp_path / "memory.stat").write_text("anon 1000\nfile 900000\nkernel 48576\n")
    assert memory_errors.free_memory() == (1 << 20) - 1000 - 48576
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_errors.free_memory() is not None
