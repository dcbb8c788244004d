"""All entries of the model zoo: built-in ones, those of other packages, and the user's own.

Files are read when an entry is first asked for, not when the package is imported.
"""

from __future__ import annotations

import fnmatch
import glob
import importlib.metadata
import logging
import os
import re
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

from panoptic_ext.errors import ConfigError, quoted, shortened, unknown
from panoptic_ext.model_zoo.entry import ZooEntry, read_entry

__all__ = [
    "ENTRY_POINTS",
    "ENVIRONMENT",
    "add",
    "entries",
    "find",
    "is_whole_entry",
    "matching",
    "names",
]

logger = logging.getLogger(__name__)

ENTRY_POINTS = "panoptic_ext.model_zoo"
"""Group of entry points by which another distribution adds entries."""

ENVIRONMENT = "PANOPTIC_EXT_ZOO"
"""Environment variable: YAML files and folders of entries, separated as in $PATH."""

_BUILT_IN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "entries")

Places = str | os.PathLike


class _Catalog:
    """The entries by name, as far as they have been read."""

    def __init__(self) -> None:
        self.by_name: dict[str, ZooEntry] = {}
        self.places: list[str] = []  # given to `add`
        self.environment: str | None = None  # what $PANOPTIC_EXT_ZOO was when it was read

    def load(self) -> dict[str, ZooEntry]:
        environment = os.environ.get(ENVIRONMENT, "")
        if self.environment == environment:
            return self.by_name
        by_name: dict[str, ZooEntry] = {}
        _put(by_name, _read_place(_BUILT_IN))
        _put_of_packages(by_name)
        for place in filter(None, environment.split(os.pathsep)):
            _put(by_name, _read_place(place, f"${ENVIRONMENT}"))
        for place in self.places:
            _put(by_name, _read_place(place))
        self.by_name, self.environment = by_name, environment
        return by_name

    def add(self, place: str) -> list[str]:
        new = list(_read_place(place))
        by_name = dict(self.load())
        _put(by_name, new)
        self.by_name = by_name  # after the last check: what raises adds nothing
        if place not in self.places:
            self.places.append(place)
        return [entry.name for entry in new]


_catalog = _Catalog()


def entries() -> dict[str, ZooEntry]:
    """All entries by name, in alphabetical order.

    Raises:
        ConfigError: a built-in file, or one that $PANOPTIC_EXT_ZOO names, is wrong.
    """
    return dict(sorted(_catalog.load().items()))


def names() -> list[str]:
    """The names of all entries, in alphabetical order."""
    return sorted(_catalog.load())


def matching(pattern: str = "*", task: str = "") -> list[str]:
    """The names that fit, in alphabetical order.

    Args:
        pattern: with * and ?, as in a shell; without these, a part of the name. Case does not
            matter.
        task: one of `TASKS`; "" for all.
    """
    pattern = pattern.lower()
    if not any(sign in pattern for sign in "*?["):
        pattern = f"*{pattern}*"
    return [
        name
        for name, entry in entries().items()
        if fnmatch.fnmatchcase(name.lower(), pattern) and task in ("", entry.task)
    ]


def find(name: str) -> ZooEntry:
    """The entry of a name, which may end in ".yaml" as Detectron2's names do.

    Raises:
        ConfigError: there is none; the message suggests the nearest name.
    """
    by_name = _catalog.load()
    key = name if name in by_name else str(name).removesuffix(".yaml")
    if key not in by_name:
        raise ConfigError(
            unknown(
                "model",
                name,
                sorted(by_name),
                limit=0,
                mend=f"`panoptic-ext zoo list` shows all {len(by_name)} models of the zoo",
            )
        )
    return by_name[key]


def add(yaml_or_folder: Places) -> list[str]:
    """Add entries of your own, for this process; $PANOPTIC_EXT_ZOO adds them for all.

    Args:
        yaml_or_folder: a YAML file of one entry, or a folder, whose files `*.yaml` are read, those
            in folders below it as well. Configs may lie among them.

    Returns:
        The names. A second call for the same files changes nothing.

    Raises:
        ConfigError: a file is wrong, or its name is taken by another entry.
    """
    return _catalog.add(os.path.abspath(os.path.expanduser(os.fspath(yaml_or_folder))))


def _put(by_name: dict[str, ZooEntry], new: Iterable[ZooEntry]) -> None:
    for entry in new:
        old = by_name.get(entry.name)
        if old is not None and os.path.realpath(old.path) != os.path.realpath(entry.path):
            raise ConfigError(
                f"{entry.path}: the name {quoted(entry.name)} is taken by {old.path}; give one of "
                "the two another name"
            )
        by_name[entry.name] = entry


def _read_place(place: str, named_by: str = "") -> Iterator[ZooEntry]:
    """The entries of a YAML file or a folder."""
    place = os.path.abspath(os.path.expanduser(place))
    if os.path.isfile(place):
        yield read_entry(place)
        return
    if not os.path.isdir(place):
        by = f", named by {named_by}," if named_by else ""
        raise ConfigError(
            f"{place}{by} does not exist; expected the YAML file of a zoo entry or a folder of them"
        )
    pattern = os.path.join(glob.escape(place), "**", "*.yaml")
    for path in sorted(glob.glob(pattern, recursive=True)):
        if place == _BUILT_IN or _is_entry(path):
            yield read_entry(path)


def _is_entry(path: str) -> bool:
    """Whether a YAML file is no config, by its text: the keys of configs are in capitals."""
    with open(path, encoding="utf-8", errors="replace") as stream:
        return any(re.match(r"[a-z]\w*:", line) for line in stream)


def is_whole_entry(path: str) -> bool:
    """Whether a YAML file has the keys that every entry has, by its text."""
    with open(path, encoding="utf-8", errors="replace") as stream:
        keys = {line.partition(":")[0] for line in stream if ":" in line}
    return {"name", "task", "weights"} <= keys


def _put_of_packages(by_name: dict[str, ZooEntry]) -> None:
    """Add the entries of other distributions; one that fails costs a warning and no more."""
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        with_these = dict(by_name)
        try:
            for place in _places(point.load()):
                _put(with_these, _read_place(place))
        except Exception as error:  # the code of another package can raise anything
            name = point.dist.name if point.dist is not None else "an unknown distribution"
            logger.warning(
                "The entries that %s adds to the model zoo (entry point %s = %s) are left out: %s",
                name,
                point.name,
                point.value,
                shortened(f"{type(error).__name__}: {error}", 300),
            )
            continue
        by_name.update(with_these)


def _places(value: Any) -> list[str]:
    """Paths that an entry point stands for: a path, a package, a list of these, or a function."""
    if isinstance(value, ModuleType):
        folders = getattr(value, "__path__", None)
        return [next(iter(folders))] if folders else [os.path.dirname(str(value.__file__))]
    if callable(value):
        return _places(value())
    if isinstance(value, (list, tuple)):
        return [path for item in value for path in _places(item)]
    return [os.fspath(value)]
