"""What an image needs, where the memory for it is not there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

from panoptic_ext.errors import MemoryNeededError
from panoptic_ext.regular_files import readable_size

__all__ = ["explained_memory_errors", "free_memory"]

_REFUSED = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
_ASKED = re.compile(r"to allocate ([\d.]+) ?(bytes|[KMGTPE]iB)", re.IGNORECASE)
_UNITS = ("bytes", "kib", "mib", "gib", "tib", "pib", "eib")
_LARGE = 4_000_000  # pixels; of smaller images no class scores come near a machine's memory
_CGROUP = "/sys/fs/cgroup"  # version 2; within a container it is that container's own


@contextmanager
def explained_memory_errors(height: int, width: int) -> Iterator[None]:
    """Turn an allocation that fails inside the block into an error about the image.

    Linux grants more memory than there is and kills the process that uses it. While a large image
    is at work on the processor, an allocation beyond the free memory fails instead.

    Args:
        height, width: of the image, in pixels.

    Raises:
        MemoryNeededError: there was not enough memory, of the processor or of a GPU; it says how
            large the image is, what was asked for and what would do.
    """
    try:
        with _no_more_than_free(height * width):
            yield
    except (MemoryError, RuntimeError) as error:
        is_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not is_memory and not _REFUSED.search(str(error)):
            raise
        raise MemoryNeededError(_message(height, width, str(error))) from error


@contextmanager
def _no_more_than_free(pixels: int) -> Iterator[None]:
    """Limit what the process allocates within the block to the free memory, on Linux."""
    # CUDA reserves address space as it pleases.
    if resource is None or pixels < _LARGE or torch.cuda.is_initialized():
        yield
        return
    free, used = free_memory(), _kibibytes("/proc/self/status", "VmData")
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if free is None or used is None or 0 <= soft <= used + free:  # -1: no limit
        yield
        return
    limit = used + free if hard < 0 else min(used + free, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def free_memory() -> int | None:
    """Bytes that a process can have: the machine's, or a container's where that is less.

    None where it is not known: on other systems than Linux.
    """
    free = _kibibytes("/proc/meminfo", "MemAvailable")
    try:
        with open(f"{_CGROUP}/memory.max") as stream:
            limit = int(stream.read())
        with open(f"{_CGROUP}/memory.stat") as stream:
            stat = dict(line.split() for line in stream)
    except (OSError, ValueError):  # no such limit, or "max"
        return free
    # Pages of files are given back when memory runs short.
    left = max(0, limit - int(stat.get("anon", 0)) - int(stat.get("kernel", 0)))
    return left if free is None else min(free, left)


def _kibibytes(path: str, name: str) -> int | None:
    """The line `name: 12 kB` of a file in /proc, in bytes."""
    try:
        with open(path) as stream:
            lines = (line.split() for line in stream if line.startswith(f"{name}:"))
            return next((int(line[1]) * 1024 for line in lines), None)
    except OSError:
        return None


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
