"""Which classes a conversion writes, which of them are things, and who said so."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from panoptic_ext.data.coco.categories import Category, spare_colors
from panoptic_ext.data.convert.labels import SourceClass
from panoptic_ext.errors import DatasetError, check_known, listed, quoted, unknown

__all__ = ["ALL", "ClassChoice", "ClassTable", "ask_on_terminal", "decide_classes"]

ALL = "all"
"""In place of a list of names: every class."""

Ask = Callable[[Sequence[str]], Sequence[str] | None]
"""Asks which of these classes are things; None where nobody answers."""


@dataclass(frozen=True)
class ClassChoice:
    """What the user says about the classes.

    Attributes:
        things, stuff: names; with one of them, all other classes are of the other kind. ("all",)
            means every class.
        listed: the only classes of the result, in their order; from a file.
        file: that file, for the messages.
        void: classes whose pixels become void, though they hide what is behind them.
        left_out: classes that are treated as if nobody had labelled them.
    """

    things: tuple[str, ...] | None = None
    stuff: tuple[str, ...] | None = None
    listed: tuple[SourceClass, ...] | None = None
    file: str = ""
    void: frozenset[str] = frozenset()
    left_out: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ClassTable:
    """The classes of a result.

    Attributes:
        categories: in the order of the JSON.
        void, left_out: as in `ClassChoice`.
    """

    categories: tuple[Category, ...]
    void: frozenset[str] = frozenset()
    left_out: frozenset[str] = frozenset()

    @property
    def by_name(self) -> dict[str, Category]:
        """{name: category}."""
        return {category.name: category for category in self.categories}


def decide_classes(
    found: Sequence[SourceClass], choice: ClassChoice, *, ask: Ask = lambda names: None
) -> ClassTable:
    """The classes of a result: the user's word first, then the format's, then an answer.

    Args:
        found: the classes of the source.
        choice: of the user.
        ask: asked about the classes of which nothing else tells whether they are things.

    Raises:
        DatasetError: a name that does not exist, or a class of which nobody says what it is; lists
            the classes and proposes a command.
    """
    names = [c.name for c in found]
    known = [*names, *(c.name for c in choice.listed or ())]
    for option, chosen in (
        ("--things", choice.things or ()),
        ("--stuff", choice.stuff or ()),
        ("--void", choice.void),
        ("--leave-out", choice.left_out),
    ):
        _check_names(option, [name for name in chosen if name != ALL], known)
    ignored = choice.void | choice.left_out
    kept = [c for c in found if c.name not in ignored]
    if choice.listed is not None:
        kept = _as_listed(kept, [c for c in choice.listed if c.name not in ignored], choice.file)
    if not kept:
        raise DatasetError(
            f"no class is left to convert; found {listed(names, 40, show=str) or 'none'}"
        )
    kept = _with_kinds(kept, choice, ask)
    return ClassTable(_categories(kept), choice.void, choice.left_out)


def ask_on_terminal(names: Sequence[str]) -> Sequence[str] | None:
    """Ask on stderr which classes are things; None where stdin or stderr is no terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    sys.stderr.write(f"classes: {', '.join(names)}\n")
    while True:
        sys.stderr.write("Which of them are things (countable objects)? names, all or none: ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return None
        chosen = [name.strip() for name in line.split(",") if name.strip()]
        if chosen in ([ALL], ["none"]):
            return names if chosen == [ALL] else []
        wrong = [name for name in chosen if name not in names]
        if chosen and not wrong:
            return chosen
        if wrong:
            sys.stderr.write(f"{unknown('class', wrong[0], names)}\n")


def _check_names(option: str, names: Iterable[str], known: Sequence[str]) -> None:
    for name in sorted(names):
        check_known(f"class in {option}", name, dict.fromkeys(known), error=DatasetError)


def _as_listed(
    found: Sequence[SourceClass], listed_classes: Sequence[SourceClass], file: str
) -> list[SourceClass]:
    """The listed classes, with what only the format knows of them."""
    by_name = {c.name: c for c in found}
    missing = [c.name for c in found if c.name not in {one.name for one in listed_classes}]
    if missing:
        raise DatasetError(
            f"the labels have classes that {file} does not list: {listed(missing, 40, show=str)}; "
            f"add them, or give --leave-out {_argument(missing)} or --void {_argument(missing)}"
        )
    merged = []
    for one in listed_classes:
        other = by_name.get(one.name, one)
        isthing = other.isthing if one.isthing is None else one.isthing
        merged.append(replace(one, isthing=isthing, color=one.color or other.color))
    return merged


def _with_kinds(classes: Sequence[SourceClass], choice: ClassChoice, ask: Ask) -> list[SourceClass]:
    """The same classes, each with `isthing`."""
    names = [c.name for c in classes]
    things, stuff = (
        None if chosen is None else set(names) if ALL in chosen else set(chosen)
        for chosen in (choice.things, choice.stuff)
    )
    both = sorted((things or set()) & (stuff or set()))
    if both:
        raise DatasetError(
            f"--things and --stuff both name {quoted(both[0])}; a class is one or the other"
        )
    kinds = {c.name: _kind(c, things, stuff) for c in classes}
    open_names = [name for name, kind in kinds.items() if kind is None]
    if open_names:
        answer = ask(open_names)
        if answer is None:
            raise DatasetError(_which_are_things(open_names))
        kinds.update((name, name in answer) for name in open_names)
    return [replace(c, isthing=kinds[c.name]) for c in classes]


def _kind(one: SourceClass, things: set[str] | None, stuff: set[str] | None) -> bool | None:
    if things is None and stuff is None:
        return one.isthing
    if one.name in (things or ()):
        return True
    if one.name in (stuff or ()):
        return False
    # With both lists, the classes in neither are the format's affair.
    if things is not None and stuff is not None:
        return one.isthing
    return things is None


def _which_are_things(names: Sequence[str]) -> str:
    first = names[0]
    return (
        f"which of these classes are things (countable objects), which stuff? {len(names)} found: "
        f"{listed(names, 60, show=str)}; name the things (the others become stuff), for example "
        f"--things {_argument([first])}, or --things all, --stuff all, or give a file with "
        "--classes"
    )


def _argument(names: Sequence[str]) -> str:
    """Names as one argument of a shell."""
    text = ",".join(names)
    return text if re.fullmatch(r"[\w,.-]+", text) else f"'{text}'"


def _categories(classes: Sequence[SourceClass]) -> tuple[Category, ...]:
    """The classes with ids and colours; ids of the source stay, unless they are not unique."""
    ids = [c.id for c in classes]
    # An id of 0 is void in label maps of classes, so that such classes are numbered anew.
    if None in ids or len(set(ids)) < len(ids):
        ids = list(range(1, len(classes) + 1))
    return tuple(
        Category(i or 0, c.name, bool(c.isthing), c.color or spare)
        for i, c, spare in zip(ids, classes, spare_colors(len(classes)), strict=True)
    )
