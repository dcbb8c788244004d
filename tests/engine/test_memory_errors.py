"""Images that do not fit into memory: what they need and what would do (case 18)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

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
