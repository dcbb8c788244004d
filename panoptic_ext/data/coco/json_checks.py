"""Checks of a COCO panoptic JSON that need no other file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from panoptic_ext.data.coco.categories import Category, spare_colors
from panoptic_ext.data.coco.divisor import check_divisor_categories
from panoptic_ext.data.coco.id_map import MAX_RGB_ID
from panoptic_ext.data.coco.json_file import is_int
from panoptic_ext.data.coco.problems import Problem
from panoptic_ext.errors import DatasetError, quoted

__all__ = ["check_structure", "read_categories", "safe_name"]

_MAX_DIVISOR_ID = 2**31 - 1
_MAX_AREA = 2**53  # the largest integer that every JSON reader reads exactly
_MAX_CATEGORY = 2**63 - 1


def check_structure(
    info: dict[str, Any],
    path: str,
    *,
    encoding: str = "rgb",
    categories: Sequence[Category] | None = None,
    needs_images: bool = True,
    needs_area: bool = True,
) -> list[Problem]:
    """Return all problems of `info` that can be detected without opening images or PNGs.

    Args:
        info: the parsed JSON.
        path: its file, for the messages.
        encoding: "rgb" bounds ids by 2^24 and needs segments_info; "divisor" may lack it.
        categories: those to use in place of the JSON's own.
        needs_images: if False, `images` is not checked.
        needs_area: if False, segments may lack area and iscrowd, as those of predictions do.
    """
    # Without the lists at the top level none of the other checks can run.
    top_level_problems = _check_top_level(info, path, needs_images, categories is None)
    if top_level_problems:
        return top_level_problems
    problems: list[Problem] = []
    if categories is None:
        problems += _check_categories(info["categories"], path)
        ids = [c.get("id") for c in info["categories"] if isinstance(c, dict)]
        known = {i for i in ids if is_int(i)}
    else:
        known = {c.id for c in categories}
    if encoding == "divisor":
        problems += check_divisor_categories(known, info["annotations"], path)
    image_ids = None
    if needs_images:
        # Compared as text: an annotation may name image 7 as "7".
        image_ids = {_text(e.get("id")) for e in info["images"] if isinstance(e, dict)}
        for entry in info["images"]:
            problems += _check_image(entry, path)
        problems += _duplicates(info["images"], "id", path, "images", "duplicate-image-id")
    problems += _duplicates(
        info["annotations"], "image_id", path, "annotations", "duplicate-image-id"
    )
    problems += _duplicates(info["annotations"], "file_name", path, "annotations", "duplicate-png")
    max_id = _MAX_DIVISOR_ID if encoding == "divisor" else MAX_RGB_ID
    checker = _SegmentChecker(known, max_id, needs_area)
    for annotation in info["annotations"]:
        problems += _check_annotation(annotation, path, image_ids, encoding)
        if isinstance(annotation, dict):
            where = f"{path}, image id {quoted(annotation.get('image_id'))}"
            problems += checker.check(annotation.get("segments_info") or [], where)
    return problems


def read_categories(info: dict[str, Any], path: str) -> tuple[Category, ...]:
    """The JSON's categories in its order; DatasetError where they cannot be used."""
    if "categories" not in info:
        raise DatasetError(
            f"{path} has no categories, found the keys {quoted(sorted(info))}; add them or pass "
            "classes="
        )
    problems = _check_categories(info["categories"], path)
    if problems:
        raise DatasetError("\n".join(str(problem) for problem in problems))
    colors = spare_colors(len(info["categories"]))
    return tuple(
        Category(
            int(c["id"]),
            str(c["name"]),
            bool(c["isthing"]),
            _as_color(c.get("color")) or spare,
        )
        for c, spare in zip(info["categories"], colors, strict=True)
    )


def safe_name(name: Any) -> bool:
    """Whether `name` is a relative path that stays inside its root."""
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    parts = name.replace("\\", "/").split("/")
    return not (name.startswith(("/", "\\")) or ".." in parts or parts[0].endswith(":"))


def _check_top_level(
    info: dict[str, Any], path: str, needs_images: bool, needs_categories: bool
) -> list[Problem]:
    expected = ["images"] * needs_images + ["annotations"] + ["categories"] * needs_categories
    problems = [
        Problem(
            "missing-key",
            path,
            f"no list {quoted(key)} at the top level, found {quoted(sorted(info))}",
            "a COCO panoptic JSON needs images, annotations and categories",
        )
        for key in expected
        if not isinstance(info.get(key), list)
    ]
    if problems:
        return problems
    if not info["annotations"]:
        return [Problem("no-annotations", path, "annotations is empty", "annotate some images")]
    first = info["annotations"][0]
    if isinstance(first, dict) and "segments_info" not in first and "segmentation" in first:
        return [
            Problem(
                "instances-json",
                path,
                "an instances JSON (annotations have 'segmentation'), expected a panoptic one "
                "(annotations have 'segments_info' and a PNG 'file_name')",
                "use the data set's panoptic_*.json, or convert the instances to panoptic PNGs",
            )
        ]
    return []


def _check_categories(categories: Any, path: str) -> list[Problem]:
    problems = []
    if not isinstance(categories, list) or not categories:
        return [Problem("no-categories", path, "categories is empty", "list every class in it")]
    for category in categories:
        where = f"{path}, category {quoted(category)}"
        if not isinstance(category, dict) or not _is_in(category.get("id"), _MAX_CATEGORY):
            problems.append(
                Problem("bad-category", where, "no integer 'id'", "give each category an id")
            )
            continue
        if not category.get("name") or not isinstance(category["name"], (str, int, float)):
            problems.append(
                Problem("bad-category", where, "no 'name'", "give each category a name")
            )
        if category.get("isthing") not in (0, 1):
            value = quoted(category["isthing"]) if "isthing" in category else "no 'isthing'"
            problems.append(
                Problem(
                    "bad-isthing",
                    where,
                    f"{value}, expected isthing 0 or 1",
                    "write 1 for countable classes and 0 for stuff",
                )
            )
    for key in ("id", "name"):
        problems += _duplicates(categories, key, path, "categories", "duplicate-category")
    return problems


def _check_image(entry: Any, path: str) -> list[Problem]:
    if not isinstance(entry, dict) or not _is_id(entry.get("id")):
        where = f"{path}, images entry {quoted(entry)}"
        return [Problem("bad-image", where, "no 'id'", "give each image an integer or string id")]
    where = f"{path}, image id {quoted(entry['id'])}"
    problems = []
    if not safe_name(entry.get("file_name")):
        problems.append(_unsafe_name(where, entry.get("file_name")))
    size = (entry.get("height"), entry.get("width"))
    if not all(is_int(v) and v > 0 for v in size):
        problems.append(
            Problem(
                "bad-size",
                where,
                f"height, width are {quoted(size[0])}, {quoted(size[1])}, expected positive "
                "integers",
                "write the image's size in pixels",
            )
        )
    return problems


def _check_annotation(
    annotation: Any, path: str, image_ids: set[str] | None, encoding: str
) -> list[Problem]:
    if not isinstance(annotation, dict) or not _is_id(annotation.get("image_id")):
        where = f"{path}, annotation {quoted(annotation)}"
        return [Problem("bad-annotation", where, "no 'image_id'", "name the image of each entry")]
    where = f"{path}, image id {quoted(annotation['image_id'])}"
    problems = []
    if image_ids is not None and _text(annotation["image_id"]) not in image_ids:
        problems.append(
            Problem(
                "no-image-entry",
                where,
                "an annotation without an entry in images",
                "add the image's entry or remove the annotation",
            )
        )
    if not safe_name(annotation.get("file_name")):
        problems.append(_unsafe_name(where, annotation.get("file_name")))
    segments = annotation.get("segments_info")
    if not (isinstance(segments, list) or (segments is None and encoding == "divisor")):
        problems.append(
            Problem(
                "no-segments-info",
                where,
                f"segments_info is {quoted(segments)}, expected a list",
                "list the segments of the image's PNG; an empty list is an image of void",
            )
        )
    return problems


def _unsafe_name(where: str, name: Any) -> Problem:
    return Problem(
        "unsafe-name",
        where,
        f"file_name {quoted(name)}, expected a relative path inside the root folder, without '..'",
        "write the path relative to the image or PNG root",
    )


class _SegmentChecker:
    """Checks the segments of one annotation after another."""

    def __init__(self, category_ids: set[int], max_id: int, needs_area: bool):
        self.category_ids = category_ids
        self.max_id = max_id
        self.needs_area = needs_area

    def check(self, segments: Any, where: str) -> list[Problem]:
        problems: list[Problem] = []
        if not isinstance(segments, list):
            return problems
        for segment in segments:
            if not isinstance(segment, dict):
                problems.append(
                    Problem(
                        "bad-segment", where, f"segment {quoted(segment)}", "expected an object"
                    )
                )
            elif not self._is_good(segment):
                problems += self._explain(
                    segment, f"{where}, segment id {quoted(segment.get('id'))}"
                )
        return problems + _duplicates(segments, "id", where, "segments_info", "duplicate-segment")

    def _is_good(self, segment: dict[str, Any]) -> bool:
        # COCO has more than a million segments. This test is quick; only for a segment that fails
        # it does `_explain` repeat the parts and report the one that failed.
        return (
            is_int(segment.get("id"))
            and 0 < segment["id"] <= self.max_id
            and self._is_known(segment.get("category_id"))
            and (
                not self.needs_area
                or (_is_area(segment.get("area")) and segment.get("iscrowd") in (0, 1))
            )
        )

    def _is_known(self, category: Any) -> bool:
        return is_int(category) and category in self.category_ids

    def _explain(self, segment: dict[str, Any], where: str) -> list[Problem]:
        problems = []
        i = segment.get("id")
        if i == 0 and is_int(i):
            problems.append(
                Problem("segment-id-0", where, "0 is void", "number segments from 1 upwards")
            )
        elif not is_int(i) or not 0 < i <= self.max_id:
            problems.append(
                Problem(
                    "segment-id-range",
                    where,
                    f"expected an integer id from 1 to {self.max_id}",
                    "renumber the segments in JSON and PNG",
                )
            )
        if not self._is_known(segment.get("category_id")):
            known = sorted(self.category_ids, key=str)
            problems.append(
                Problem(
                    "unknown-category",
                    where,
                    f"category_id {quoted(segment.get('category_id'))} is not in categories, "
                    f"which have the ids {quoted(known)}",
                    "correct it or add the category",
                )
            )
        for key, is_valid in (
            ("area", _is_area(segment.get("area"))),
            ("iscrowd", segment.get("iscrowd") in (0, 1)),
        ):
            if self.needs_area and not is_valid:
                value = (
                    f"{key} is {quoted(segment[key])}" if key in segment else f"no {quoted(key)}"
                )
                problems.append(
                    Problem(
                        f"bad-{key}",
                        where,
                        f"{value}, expected "
                        + ("the number of pixels" if key == "area" else "0 or 1"),
                        f"write {key} into every segment",
                    )
                )
        return problems


def _duplicates(
    entries: Iterable[Any], key: str, where: str, list_name: str, kind: str
) -> list[Problem]:
    # This runs for the segments of every image, so the counter is built only for lists with
    # duplicates.
    values = [_text(e[key]) for e in entries if isinstance(e, dict) and e.get(key) is not None]
    if len(set(values)) == len(values):
        return []
    return [
        Problem(
            kind,
            f"{where}, {list_name}",
            f"{key} {quoted(value)} occurs {count} times, expected once",
            "merge or renumber them",
        )
        for value, count in Counter(values).items()
        if count > 1
    ]


def _text(value: Any) -> str:
    """`str` of an id or name. Other kinds of value get a bounded text; other checks report them."""
    return str(value) if isinstance(value, (str, int, float)) else quoted(value)


def _is_in(value: Any, limit: int) -> bool:
    return is_int(value) and -limit <= value <= limit


def _is_area(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 <= value <= _MAX_AREA


def _is_id(value: Any) -> bool:
    return is_int(value) or (isinstance(value, str) and bool(value))


def _as_color(value: Any) -> tuple[int, int, int] | None:
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        return None
    if not all(is_int(v) and 0 <= v <= 255 for v in value):
        return None
    return value[0], value[1], value[2]
