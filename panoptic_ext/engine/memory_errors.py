"""Explain errors about memory by the size of the image."""

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

_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
_ALLOCATION = re.compile(r"to allocate ([\d.]+) ?(bytes|[KMGTPE]iB)", re.IGNORECASE)
_ALLOCATION_UNITS = ("bytes", "kib", "mib", "gib", "tib", "pib", "eib")
# Pixels. The class scores of smaller images are far smaller than a machine's memory.
_LARGE_IMAGE = 4_000_000
_CGROUP = "/sys/fs/cgroup"  # version 2; within a container it describes that container


@contextmanager
def explained_memory_errors(height: int, width: int) -> Iterator[None]:
    """Turn an allocation that fails inside the block into an error about the image.

    Args:
        height, width: of the image, in pixels.

    Raises:
        MemoryNeededError: there was not enough memory, of the processor or of a GPU. The message
            gives the size of the image, the allocation that failed and what the user can do.
    """
    try:
        with _no_more_than_free(height * width):
            yield
    except (MemoryError, RuntimeError) as error:
        is_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not is_memory and not _OUT_OF_MEMORY.search(str(error)):
            raise
        raise MemoryNeededError(_message(height, width, str(error))) from error


@contextmanager
def _no_more_than_free(pixels: int) -> Iterator[None]:
    """Limit what the process allocates within the block to the free memory, on Linux.

    Small images and processes that use CUDA are not limited.
    """
    # Without a limit, Linux grants more memory than there is and kills the process when it uses it.
    # CUDA reserves address space that it never uses, so no limit fits it.
    if resource is None or pixels < _LARGE_IMAGE or torch.cuda.is_initialized():
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
    """Bytes that this process can still allocate: of the machine, or of its container if less.

    Returns:
        None if the number is unknown, as on systems other than Linux.
    """
    free = _kibibytes("/proc/meminfo", "MemAvailable")
    try:
        with open(f"{_CGROUP}/memory.max") as stream:
            limit = int(stream.read())
        with open(f"{_CGROUP}/memory.stat") as stream:
            stat = dict(line.split() for line in stream)
    except (OSError, ValueError):  # no such limit, or "max"
        return free
    # The page cache is not counted as used: the kernel frees it when memory runs short.
    left = max(0, limit - int(stat.get("anon", 0)) - int(stat.get("kernel", 0)))
    return left if free is None else min(free, left)


def _kibibytes(path: str, name: str) -> int | None:
    """The value of the line `name: 12 kB` of a file in /proc, in bytes."""
    try:
        with open(path) as stream:
            lines = (line.split() for line in stream if line.startswith(f"{name}:"))
            return next((int(line[1]) * 1024 for line in lines), None)
    except OSError:
        return None


def _message(height: int, width: int, reason: str) -> str:
    pixels = height * width
    allocation = _ALLOCATION.search(reason)
    if allocation:
        size = int(float(allocation[1]) * 1024 ** _ALLOCATION_UNITS.index(allocation[2].lower()))
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
