"""A log of finished inputs, one line each, by which the next run continues one that was stopped."""

from __future__ import annotations

import json
import os
from typing import Any

from panoptic_ext.errors import NOT_JSON, PanopticExtError
from panoptic_ext.regular_files import LOG_FILE, check_regular_file

__all__ = ["ProgressLog"]


class ProgressLog:
    """Entries by key, kept in a file of JSON lines.

    The entries of one input, such as the frames of a video, are added one by one, and then
    committed or discarded together.

    Attributes:
        entries: key -> committed entry, those of earlier runs included, in the order in which they
            came.
    """

    def __init__(self, path: str, *, fresh: bool = False) -> None:
        """
        Args:
            path: of the file; its folder must be there.
            fresh: discard the log of an earlier run.

        Raises:
            PanopticExtError: a line is not one that `add` wrote.
        """
        self._path = path
        if fresh and os.path.exists(path):
            os.remove(path)
        self.entries = _read(path)
        self._added: dict[str, dict[str, Any]] = {}

    def add(self, key: str, entry: dict[str, Any]) -> None:
        """Hold an entry of values that JSON has, for `commit`."""
        self._added[key] = entry

    def commit(self, key: str) -> None:
        """Append what was added; a later entry replaces one of the same key.

        Args:
            key: of the input that is done. It gets an empty entry if none was added for it.
        """
        added = self._added if key in self._added else {**self._added, key: {}}
        lines = (json.dumps({"key": k, **e}, ensure_ascii=False) + "\n" for k, e in added.items())
        with open(self._path, "a", encoding="utf-8") as stream:
            stream.writelines(lines)
        self.entries.update(added)
        self._added = {}

    def discard(self) -> list[dict[str, Any]]:
        """Forget what was added; returns those entries whose keys have no committed one."""
        added, self._added = self._added, {}
        return [entry for key, entry in added.items() if key not in self.entries]


def _read(path: str) -> dict[str, dict[str, Any]]:
    """Read the entries by key; an incomplete last line of a killed run is removed from the file."""
    entries: dict[str, dict[str, Any]] = {}
    if not os.path.lexists(path):
        return entries
    check_regular_file(path, LOG_FILE)
    with open(path, "rb+") as stream:
        content = stream.read()
        end = content.rfind(b"\n") + 1  # of the complete lines
        if end < len(content):
            # Else the next entry would be appended to the incomplete line.
            stream.truncate(end)
    for number, line in enumerate(content[:end].splitlines(), start=1):
        try:
            entry = json.loads(line)
            entries[entry.pop("key")] = entry
        except (*NOT_JSON, KeyError, TypeError, AttributeError) as error:
            raise PanopticExtError(
                f"{path}:{number} is not a line that predict wrote: {error}; remove this file to"
                " predict its images again"
            ) from error
    return entries
