"""What an image needs, where the memory for it is not there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from panoptic_ext.errors import MemoryNeededError
from panoptic_ext.regular_files import readable_size

__all__ = ["explained_memory_errors"]

_REFUSED = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
_ASKED = re.compile(r"to allocate ([\d.]+) ?(bytes|[KMGTPE]iB)", re.IGNORECASE)
_UNITS = ("bytes", "kib", "mib", "gib", "tib", "pib", "eib")


@contextmanager
def explained_memory_errors(height: int, width: int) -> Iterator[None]:
    """Turn an allocation that fails inside the block into an error about the image.

    Args:
        height, width: of the image, in pixels.

    Raises:
        MemoryNeededError: there was not enough memory, of the processor or of a GPU; it says how
            large the image is, what was asked for and what would do.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not is_memory and not _REFUSED.search(str(error)):
            raise
        raise MemoryNeededError(_message(height, width, str(error))) from error


def _message(height: int, width: int, reason: str) -> str:
    pixels = height * width
    asked = _ASKED.search(reason)
    if asked:
        size = int(float(asked[1]) * 1024 ** _UNITS.index(asked[2].lower()))
        needed = (
            f"one step alone asks for {readable_size(size)} ({size / pixels:.0f} bytes a pixel)"
        )
    else:
        needed = "the scores of all classes take 4 bytes a pixel and class"
    device = "the GPU's memory" if "CUDA" in reason else "memory"
    return (
        f"an image of {height} x {width} (height x width, {pixels / 1e6:.0f} million pixels) does"
        f" not fit into {device}: {needed}. Make it smaller (half the height and width need a"
        " quarter), cut it into parts, or take a machine with more memory"
        + (", or MODEL.DEVICE cpu" if "CUDA" in reason else "")
    )
