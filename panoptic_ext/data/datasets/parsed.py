"""The JSON of a panoptic data set, parsed and checked: within `parsed_once` once for all."""

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
    """A data set's JSON that was found, parsed and checked. Nobody changes it: others may hold it.

    Attributes:
        path, image_root, png_root: where the data set lies.
        content: the JSON.
        categories: those registered, or the JSON's.
    """

    path: str
    image_root: str
    png_root: str
    content: dict[str, Any]
    categories: tuple[Category, ...]


@dataclass
class _Kept:
    """The JSON that was parsed last within a scope, and what was checked of it."""

    path: str | None = None
    content: dict[str, Any] = field(default_factory=dict)
    checked: list[tuple[PanopticSource, ParsedSource]] = field(default_factory=list)


_kept: ContextVar[_Kept | None] = ContextVar("kept", default=None)


@contextmanager
def parsed_once() -> Iterator[None]:
    """A scope that keeps the last JSON that was parsed, for whoever asks for the same file next.

    An evaluation runs in it: its loader, its evaluators and its contact sheet need one data set.
    Outside of it nothing is kept, because the JSON of a training set would take memory for days.
    """
    # A scope within another shares what that keeps.
    token = _kept.set(_kept.get() or _Kept())
    try:
        yield
    finally:
        _kept.reset(token)


def parsed_content(path: str) -> dict[str, Any]:
    """The JSON at `path`, see `read_json`; not checked. Not to be changed."""
    kept = _kept.get()
    if kept is None:
        return read_json(path)
    if kept.path != path:
        # One JSON at most: with COCO's 118,000 training images two would take gigabytes.
        kept.path, kept.content, kept.checked = None, {}, []
        kept.content = read_json(path)
        kept.path = path
    return kept.content


def parsed_source(source: PanopticSource) -> ParsedSource:
    """The checked JSON of a source.

    Raises:
        DatasetError: it is not as it should be; lists the problems.
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
