"""Say once that the licence of an entry's weights forbids commercial use."""

from __future__ import annotations

import logging
import os

from iopath.common.file_io import get_cache_dir

from panoptic_ext.atomic import write_atomic
from panoptic_ext.model_zoo.entry import ZooEntry

__all__ = ["notice_file", "record_licence", "tell_licence"]

logger = logging.getLogger(__name__)

_told: set[str] = set()  # names, in this process


def tell_licence(entry: ZooEntry) -> None:
    """Warn that the weights must not be used commercially, at the first use of an entry.

    The warning comes before the download. `record_licence` notes in the cache of downloads that it
    was given, so that it comes once for each entry and cache, not at every start of a program. In
    one process it comes once in any case.
    """
    if entry.commercial_use or entry.name in _told or os.path.exists(notice_file(entry)):
        return
    _told.add(entry.name)
    logger.warning(
        "%s. This is said at the first use; `panoptic-ext zoo info` repeats it", _text(entry)
    )


def record_licence(entry: ZooEntry) -> None:
    """Note that the licence of an entry was said, after its weights have come."""
    path = notice_file(entry)
    if entry.commercial_use or os.path.exists(path):
        return
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_atomic(path, lambda stream: stream.write(f"{_text(entry)}\n".encode()))
    except OSError:  # a cache that cannot be written: the next process says it again
        logger.debug("%s cannot be written", path)


def notice_file(entry: ZooEntry) -> str:
    """Path of the file that records that the licence was said; removing it says it again."""
    name = f"{entry.name.replace('/', '-')}.txt"
    return os.path.join(get_cache_dir(), "panoptic_ext", "licences_said", name)


def _text(entry: ZooEntry) -> str:
    return (
        f"The weights of {entry.name} may not be used commercially: their licence is "
        f"{entry.licence} ({entry.source})"
    )
