"""Parse and check the JSON of a panoptic data set; within `parsed_once` only once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from panoptic_ext.data.coco.categories import Category
from panoptic_ext.data.coco.json_checks import check_structure, read_categories
from panoptic_ext.data.coco.json_file import read_json
from panoptic_ext.data.coco.problems import raise_if_any

if TYPE_CHECKING:
    from panoptic_ext.data.datasets.metadata import PanopticSource

__all__ = ["ParsedSource", "parsed_content", "parsed_once", "parsed_source"]


@dataclass(frozen=True)
class ParsedSource:
    """The parsed and checked JSON of a data set. It may be shared, so it must not be modified.

    Attributes:
        path, image_root, png_root: the located JSON file and folders.
        content: the JSON.
        categories: the registered categories, else those of the JSON.
    """

    path: str
    image_root: str
    png_root: str
    content: dict[str, Any]
    categories: tuple[Category, ...]


@dataclass
class _Kept:
    """The JSON that was parsed last within a scope, and the sources for which it was checked."""

    path: str | None = None
    content: dict[str, Any] = field(default_factory=dict)
    checked: list[tuple[PanopticSource, ParsedSource]] = field(default_factory=list)


_kept: ContextVar[_Kept | None] = ContextVar("kept", default=None)


@contextmanager
def parsed_once() -> Iterator[None]:
    """Scope that caches the last parsed JSON, so that the same file is parsed once.

    An evaluation runs in such a scope, because its loader, evaluators and contact sheet read the
    same data set. Outside, nothing is cached: a training set's JSON would occupy memory for days.
    """
    # A nested scope shares the cache of the outer one.
    token = _kept.set(_kept.get() or _Kept())
    try:
        yield
    finally:
        _kept.reset(token)


def parsed_content(path: str) -> dict[str, Any]:
    """The unchecked JSON at `path`, see `read_json`. It may be shared: do not modify it."""
    kept = _kept.get()
    if kept is None:
        return read_json(path)
    if kept.path != path:
        # The cache holds one JSON at most: with COCO's 118,000 training images, two would take
        # gigabytes. The old one is released before the new one is parsed, for the same reason.
        kept.path, kept.content, kept.checked = None, {}, []
        kept.content = read_json(path)
        kept.path = path
    return kept.content


def parsed_source(source: PanopticSource) -> ParsedSource:
    """The checked JSON of a source.

    Raises:
        DatasetError: the JSON is invalid; the message lists its problems.
    """
    path, image_root, png_root = source.locate()
    content = parsed_content(path)
    kept = _kept.get()
    for other, parsed in kept.checked if kept else ():
        if other == source:
            return parsed
    problems = check_structure(content, path, encoding=source.encoding, categories=source.classes)
    raise_if_any(problems, path)
    categories = source.classes or read_categories(content, path)
    parsed = ParsedSource(path, image_root, png_root, content, categories)
    if kept is not None:
        kept.checked.append((source, parsed))
    return parsed
