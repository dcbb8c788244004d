"""Category ids of segments from one numbering of classes into another, by the names of the classes.

A numbering is given by one of
- the name of a registered data set, or its metadata: the contiguous ids, which models and
  Detectron2's Visualizer use; of separated metadata, those of things and of stuff apart;
- a pair of one of these and "dataset": the ids of its JSON, such as COCO's 1 to 200;
- an `id2label` of transformers: {0: "person", ...}, its keys int or str;
- the "categories" of a COCO JSON: [{"id": 1, "name": "person", "isthing": 1}, ...].
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from panoptic_ext.data.datasets.registered import get_metadata
from panoptic_ext.data.datasets.unified_classes import unified_classes
from panoptic_ext.errors import DatasetError, check_known, listed, nearest, quoted

__all__ = ["map_categories"]

_UNMATCHED = ("error", "drop", "keep")


class _Class(NamedTuple):
    """A class of a numbering; isthing is None where the numbering does not say."""

    number: int
    name: str
    isthing: bool | None


@dataclass(frozen=True)
class _Numbering:
    """The classes of a numbering.

    Attributes:
        classes: in any order.
        key: of a segment's class: "category_id", or "label_id" in transformers.
        apart: whether things and stuff are numbered apart.
        title: of it, for errors.
    """

    classes: tuple[_Class, ...]
    key: str
    apart: bool
    title: str

    def class_of(self, segment: Mapping[str, Any]) -> _Class:
        """The class of a segment.

        Raises:
            DatasetError: the segment has no class, or one that is not in the numbering.
        """
        keys = sorted(("category_id", "label_id"), key=lambda key: key != self.key)
        number = next((segment[key] for key in keys if segment.get(key) is not None), None)
        for candidate in self.classes:
            same_kind = not self.apart or candidate.isthing == bool(segment.get("isthing"))
            if candidate.number == number and same_kind:
                return candidate
        numbers = listed(sorted({c.number for c in self.classes}), 8)
        raise DatasetError(
            f"segment {quoted(segment.get('id'))} has the {self.key} {quoted(number)}, which"
            f" {self.title} does not have; expected one of {numbers}"
        )


def map_categories(
    segments_info: Sequence[Mapping[str, Any]],
    source: Any,
    target: Any,
    *,
    unmatched: str = "error",
) -> list[dict[str, Any]]:
    """Convert the class of each segment from one numbering into another.

    Classes of one name correspond. Case, "_" and "-" do not count, nor do the endings "-merged" and
    "-other" that Detectron2 takes off COCO's names, nor the synonyms behind a comma in ADE20K's,
    unless that leaves two classes of one name.

        labels = model.config.id2label
        segments = map_categories(result["segments_info"], labels, "coco_2017_val_panoptic")

    Args:
        segments_info: dicts with "category_id" (COCO, panopticapi, Detectron2) or "label_id"
            (transformers). All other entries are kept.
        source, target: numberings; see the module.
        unmatched: what is done with a segment whose class the target does not have: "error" raises,
            "drop" leaves the segment out, so that its pixels belong to none, "keep" keeps its entry
            as it is.

    Returns:
        Copies of the segments. The class is under "label_id" if the target is an `id2label`, else
        under "category_id"; "isthing" is the target's where it knows.

    Raises:
        DatasetError: a segment is not in the source, or, with "error", not in the target; or a
            numbering is none of these.
    """
    check_known("unmatched", unmatched, _UNMATCHED, error=DatasetError)
    before, after = _numbering(source), _numbering(target)
    counterparts = _counterparts(before, after)
    mapped, missing = [], []
    for segment in segments_info:
        old = before.class_of(segment)
        new = counterparts.get(old)
        if new is not None:
            copied = {k: v for k, v in segment.items() if k not in ("category_id", "label_id")}
            known = {} if new.isthing is None else {"isthing": new.isthing}
            mapped.append({**copied, after.key: new.number, **known})
        elif unmatched == "keep":
            mapped.append(dict(segment))
        else:
            missing.append(old.name)
    if missing and unmatched == "error":
        names = {c.name for c in after.classes}
        shown = listed(
            (f"{name!r}{nearest(name, names)}" for name in sorted(set(missing))), show=str
        )
        raise DatasetError(
            f"{after.title} has no class that corresponds to {shown}; expected a class of one name,"
            ' or unmatched="drop" to leave such segments out'
        )
    return mapped


def _numbering(given: Any) -> _Numbering:
    """Read a numbering in any of its forms."""
    if isinstance(given, Mapping):
        classes = tuple(_Class(int(key), str(name), None) for key, name in given.items())
        return _Numbering(classes, "label_id", False, "the id2label")
    if isinstance(given, str) or hasattr(given, "thing_classes") or hasattr(given, "stuff_classes"):
        return _of_data_set(given, dataset_ids=False)
    if isinstance(given, Sequence) and len(given) == 2 and given[1] in ("dataset", "contiguous"):
        return _of_data_set(given[0], dataset_ids=given[1] == "dataset")
    try:
        categories = [(int(c["id"]), str(c["name"]), c.get("isthing")) for c in given]
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise DatasetError(
            f"{quoted(given)} numbers no classes; expected the name of a data set or its metadata,"
            ' a pair of it and "dataset", an id2label dict, or COCO categories with id and name'
        ) from error
    known = (_Class(i, name, None if kind is None else bool(kind)) for i, name, kind in categories)
    return _Numbering(tuple(known), "category_id", False, "the list of categories")


def _of_data_set(data_set: Any, *, dataset_ids: bool) -> _Numbering:
    metadata = get_metadata(data_set) if isinstance(data_set, str) else data_set
    unified = unified_classes(metadata)
    title = f"data set {quoted(unified.name)}" if unified.name else "the metadata"
    apart = unified.numbered_apart
    numbers = list(range(len(unified.categories)))
    if dataset_ids:
        apart, numbers = None, [category.id for category in unified.categories]
    elif apart is not None:
        numbers = [number for kind in (True, False) for number in apart[kind]]
    classes = zip(numbers, unified.categories, strict=True)
    return _Numbering(
        tuple(_Class(number, c.name, c.isthing) for number, c in classes),
        "category_id",
        apart is not None,
        title,
    )


def _counterparts(before: _Numbering, after: _Numbering) -> dict[_Class, _Class]:
    """The class of `after` for each class of `before` that has one."""
    names = [c.name for c in before.classes]
    if names == [c.name for c in after.classes]:
        # The same classes in the same order: this also maps classes that share one name.
        return dict(zip(before.classes, after.classes, strict=True))
    pairs: dict[_Class, _Class] = {}
    # Exact names come first, so that a class and the same with "-other" are told apart.
    for simplified in (str, _simplified, _first_synonym):
        new_of, taken = _unique(after.classes, simplified), set(pairs.values())
        for name, old in _unique(before.classes, simplified).items():
            if old not in pairs and name in new_of and new_of[name] not in taken:
                pairs[old] = new_of[name]
    return pairs


def _unique(classes: Sequence[_Class], simplified: Any) -> dict[str, _Class]:
    """Name -> class, without names that several classes have."""
    counts = Counter(simplified(c.name) for c in classes)
    return {simplified(c.name): c for c in classes if counts[simplified(c.name)] == 1}


def _simplified(name: str) -> str:
    """ "wall-other-merged" -> "wall", "Traffic_Light" -> "traffic light"."""
    words = re.sub(r"[\s_-]+", " ", name.strip().lower())
    return re.sub(r"( other| merged)+$", "", words)


def _first_synonym(name: str) -> str:
    """ "building, edifice" -> "building"."""
    return _simplified(name.split(",")[0])
