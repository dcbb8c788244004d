"""The classes of any data set in one numbering, things and stuff together.

K is the number of classes. Data sets of panoptic_ext have such a numbering. Detectron2's metadata
that are called "separated" number things and stuff apart: thing 5 and stuff 5 are two classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from detectron2.data import Metadata

from panoptic_ext.data.coco.categories import Category, spare_colors
from panoptic_ext.data.datasets.metadata import class_attributes
from panoptic_ext.errors import ConfigError, DatasetError, check_known, quoted

__all__ = ["UnifiedClasses", "unified_classes", "unified_metadata"]

# Detectron2's separated metadata begin their stuff with this class, which stands for all things.
_PLACEHOLDER = "things"


@dataclass(frozen=True)
class UnifiedClasses:
    """The K classes of a data set.

    Attributes:
        categories: of each class, in the order of the contiguous ids; `id` is the dataset id, or
            the contiguous id where the metadata have no dataset ids.
        numbered_apart: where things and stuff are numbered apart, isthing -> number -> contiguous
            id; things come first. None elsewhere.
        name: of the data set, for errors.
    """

    categories: tuple[Category, ...]
    numbered_apart: Mapping[bool, Mapping[int, int]] | None = None
    name: str = ""

    def contiguous_id(self, category_id: int, isthing: bool | None = None) -> int:
        """The contiguous id of a model's `category_id`.

        Args:
            category_id: in the numbering of the metadata.
            isthing: of the segment; only read where things and stuff are numbered apart.

        Raises:
            DatasetError: no class has this number.
        """
        if self.numbered_apart is None:
            if 0 <= category_id < len(self.categories):
                return category_id
            found, expected = f"class {category_id}", f"0 to {len(self.categories) - 1}"
        elif isthing is None:
            found = f"class {category_id} without isthing"
            expected = "isthing in every segment, because things and stuff are numbered apart"
        else:
            table = self.numbered_apart[bool(isthing)]
            if category_id in table:
                return table[category_id]
            found = f"{'thing' if isthing else 'stuff'} {category_id}"
            expected = f"{min(table, default=0)} to {max(table, default=0)}"
        of_data_set = f" of data set {quoted(self.name)}" if self.name else ""
        raise DatasetError(f"a segment is of {found}{of_data_set}; expected {expected}")

    def find(self, classes: str | int | Iterable[str | int]) -> set[int]:
        """The contiguous ids of classes that are given by name or by contiguous id.

        Raises:
            ConfigError: there is no such class.
        """
        names, ids = [category.name for category in self.categories], set()
        for wanted in [classes] if isinstance(classes, (str, int, Integral)) else classes:
            if isinstance(wanted, str):
                check_known("class", wanted, names)
                ids |= {i for i, name in enumerate(names) if name == wanted}
            elif isinstance(wanted, (int, Integral)) and 0 <= int(wanted) < len(names):
                ids.add(int(wanted))
            else:
                raise ConfigError(
                    f"unknown class {quoted(wanted)}; expected a name, or a contiguous id from 0 to"
                    f" {len(names) - 1}"
                )
        return ids

    def metadata(self) -> Metadata:
        """New metadata in the unified numbering, as `register_panoptic` sets them."""
        name = {"name": self.name} if self.name else {}
        return Metadata(**name, **class_attributes(self.categories))


def unified_classes(metadata: Any) -> UnifiedClasses:
    """Read the classes of metadata of any kind: unified, separated, of things or of stuff alone.

    Args:
        metadata: with thing_classes or stuff_classes, and optionally colours, isthing and the
            tables from dataset ids to contiguous ids.

    Raises:
        DatasetError: there are no class names.
    """
    things = list(getattr(metadata, "thing_classes", None) or ())
    stuff = list(getattr(metadata, "stuff_classes", None) or ())
    name = str(getattr(metadata, "name", ""))
    if not things and not stuff:
        raise DatasetError(
            f"the metadata{f' of data set {quoted(name)}' if name else ''} have no class names:"
            " neither thing_classes nor stuff_classes; register the data set first"
        )
    thing_ids, stuff_ids = (_dataset_ids(metadata, kind) for kind in ("thing", "stuff"))
    if thing_ids.keys() & stuff_ids.keys():
        thing_part = _categories(metadata, "thing", things, thing_ids, range(len(things)))
        kept = [i for i, stuff_name in enumerate(stuff) if stuff_name != _PLACEHOLDER]
        stuff_part = _categories(metadata, "stuff", stuff, stuff_ids, kept)
        apart = {
            True: {i: i for i in range(len(things))},
            False: {number: len(things) + place for place, number in enumerate(kept)},
        }
        return UnifiedClasses((*thing_part, *stuff_part), apart, name)
    isthing = getattr(metadata, "isthing", None)
    count, has_stuff = max(len(things), len(stuff)), bool(stuff)
    # Each list is filled up from the other, because some metadata name only their own kind.
    things, stuff = [*things, *stuff[len(things) :]], [*stuff, *things[len(stuff) :]]
    if isthing is None:
        isthing = [i in thing_ids if thing_ids else not has_stuff for i in range(count)]
    both = {**stuff_ids, **thing_ids}
    thing_part = _categories(metadata, "thing", things, both, range(count))
    stuff_part = _categories(metadata, "stuff", stuff, both, range(count))
    chosen = (t if kind else s for t, s, kind in zip(thing_part, stuff_part, isthing, strict=True))
    return UnifiedClasses(tuple(chosen), None, name)


def unified_metadata(metadata: Any) -> Any:
    """Metadata that have all classes in one numbering; the given ones themselves where they do."""
    things, stuff = (getattr(metadata, f"{kind}_classes", None) for kind in ("thing", "stuff"))
    numbers = [number for kind in ("thing", "stuff") for number in _dataset_ids(metadata, kind)]
    has_colors = bool(getattr(metadata, "stuff_colors", None))
    if things and things == stuff and has_colors and sorted(numbers) == [*range(len(things))]:
        return metadata
    return unified_classes(metadata).metadata()


def _dataset_ids(metadata: Any, kind: str) -> dict[int, int]:
    """Contiguous id -> dataset id."""
    table = getattr(metadata, f"{kind}_dataset_id_to_contiguous_id", None) or {}
    return {int(contiguous): int(dataset_id) for dataset_id, contiguous in table.items()}


def _categories(
    metadata: Any,
    kind: str,
    names: Sequence[str],
    dataset_ids: Mapping[int, int],
    numbers: Sequence[int],
) -> list[Category]:
    """The classes of these numbers; those without a dataset id keep their number."""
    colors = list(getattr(metadata, f"{kind}_colors", None) or ())
    colors += spare_colors(len(names))[len(colors) :]
    return [
        Category(
            dataset_ids.get(i, i),
            str(names[i]),
            kind == "thing",
            (int(colors[i][0]), int(colors[i][1]), int(colors[i][2])),
        )
        for i in numbers
    ]
