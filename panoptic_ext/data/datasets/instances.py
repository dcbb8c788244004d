"""Data sets of instances alone: a COCO instances JSON with polygons or run lengths.

Records are Detectron2's standard ones: file_name, image_id, height, width and "annotations" with
bbox, bbox_mode, contiguous category_id, iscrowd and segmentation. Every class is a thing. Masks may
overlap, and pixels without a mask are unlabelled, so panoptic and semantic models cannot train on
such a data set.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from panoptic_ext.data.coco.json_checks import safe_name
from panoptic_ext.data.coco.json_file import is_int, read_json
from panoptic_ext.data.coco.problems import Problem, raise_if_any
from panoptic_ext.data.datasets.file_search import FolderIndex, expand, search
from panoptic_ext.data.datasets.same_source import check_name, other_content, source_differences
from panoptic_ext.errors import quoted
from panoptic_ext.regular_files import INSTANCES_JSON

__all__ = [
    "INSTANCE_EVALUATORS",
    "InstanceMetadata",
    "InstanceSource",
    "check_instances",
    "describe_instances",
    "has_instances_alone",
    "register_instance_source",
    "register_instances",
]

INSTANCE_EVALUATORS = ("coco", "lvis", "cityscapes_instance")
"""Detectron2's `evaluator_type` of data sets that hold instances alone."""


@dataclass(frozen=True)
class InstanceSource:
    """The files of a data set of instances.

    Attributes:
        json, image_root: paths; relative ones are searched in `search_path`.
        search_path: folders for `file_search.search`; None leaves relative paths unchanged.
    """

    json: str
    image_root: str
    search_path: tuple[str, ...] | None = None

    def locate(self) -> tuple[str, str]:
        """Return the paths of the JSON and the image root."""
        if self.search_path is None:
            return expand(self.json), expand(self.image_root)
        return (
            search(self.json, self.search_path, what="instances JSON"),
            search(self.image_root, self.search_path, what="image root"),
        )


class InstanceMetadata(Metadata):
    """Metadata of an instances JSON, which is read at the first access to a class list or path."""

    __slots__ = ("_source",)

    _LAZY = (
        "json_file",
        "image_root",
        "thing_classes",
        "thing_dataset_id_to_contiguous_id",
        "isthing",
    )

    def __init__(self, name: str, source: InstanceSource):
        super().__init__(name=name, evaluator_type="coco")
        object.__setattr__(self, "_source", source)

    @property
    def source(self) -> InstanceSource:
        """The registered source."""
        return self._source

    def __getattr__(self, key: str) -> Any:
        if key not in InstanceMetadata._LAZY:
            return super().__getattr__(key)
        path, image_root = self._source.locate()
        info = read_json(path, INSTANCES_JSON)
        raise_if_any(_check_categories(info, path), path)
        # The records come from Detectron2's load_coco_json, which numbers the classes by ascending
        # id. The metadata must use the same order.
        rows = sorted((c["id"], c["name"]) for c in info["categories"])
        self.__dict__.update(
            json_file=path,
            image_root=image_root,
            thing_classes=[name for _, name in rows],
            thing_dataset_id_to_contiguous_id={row[0]: i for i, row in enumerate(rows)},
            isthing=(True,) * len(rows),
        )
        return self.__dict__[key]

    def __reduce__(self) -> tuple:
        return _restore, (self.name, self._source, dict(self.__dict__))


def _restore(name: str, source: InstanceSource, values: dict[str, Any]) -> InstanceMetadata:
    metadata = InstanceMetadata(name, source)
    metadata.__dict__.update(values)
    return metadata


def register_instances(name: str, json: str | os.PathLike, image_root: str | os.PathLike) -> None:
    """Register a COCO instances JSON; nothing is read until it is used.

    Detectron2's `register_coco_instances` works as well. This function also checks the JSON when it
    is read, and its metadata has the classes before the records are loaded.

    Args:
        name: the name in DatasetCatalog and MetadataCatalog.
        json: the COCO instances JSON.
        image_root: folder of the images.

    Raises:
        DatasetError: another data set is registered under the name.
    """
    register_instance_source(name, InstanceSource(os.fspath(json), os.fspath(image_root)))


def register_instance_source(name: str, source: InstanceSource) -> None:
    """Register `source` under `name`; the same data set again changes nothing."""
    old = MetadataCatalog.get(name) if name in MetadataCatalog else None
    check_name(name, old, InstanceMetadata)
    if name in DatasetCatalog and old is not None:  # always, by `check_name`
        differences = source_differences(old.source, source)
        if differences:
            raise other_content(name, differences)
        return
    if old is not None:
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, partial(_load, name, source))
    MetadataCatalog[name] = InstanceMetadata(name, source)


def has_instances_alone(name: str) -> bool:
    """Whether a registered data set holds instances and no panoptic truth."""
    metadata = MetadataCatalog.get(name)
    return (
        metadata.get("evaluator_type", None) in INSTANCE_EVALUATORS
        and metadata.get("panoptic_root", None) is None
    )


def describe_instances(name: str) -> None:
    """Complete the metadata of Detectron2's own instance data sets, such as coco_2017_train.

    Their metadata lists the classes, but lacks `isthing`, by which models distinguish things and
    stuff. It is added here. Metadata without classes, which Detectron2 sets when it reads the JSON,
    is left as it is.
    """
    metadata = MetadataCatalog.get(name)
    if isinstance(metadata, InstanceMetadata) or not has_instances_alone(name):
        return
    classes = metadata.get("thing_classes", None)
    if classes is not None and metadata.get("isthing", None) is None:
        metadata.isthing = (True,) * len(classes)
    if classes is not None and metadata.get("thing_dataset_id_to_contiguous_id", None) is None:
        metadata.thing_dataset_id_to_contiguous_id = {i: i for i in range(len(classes))}


def check_instances(info: dict[str, Any], path: str, image_root: str = "") -> list[Problem]:
    """Return all problems of an instances JSON that can be found without opening an image.

    Args:
        info: the parsed JSON.
        path: its file, for the messages.
        image_root: folder in which the images must lie; "" skips this check.
    """
    problems = _check_categories(info, path)
    for key in ("images", "annotations"):
        if not isinstance(info.get(key), list) or not info[key]:
            problems.append(
                Problem(
                    "missing-key",
                    path,
                    f"no list {quoted(key)} with entries at the top level, found "
                    f"{sorted(info)[:20]}",
                    "a COCO instances JSON needs images, annotations and categories",
                )
            )
    # The checks below need all three lists, so they run only if those are valid.
    if problems:
        return problems
    problems += _check_images(info["images"], path, image_root)
    entries = [entry for entry in info["images"] if isinstance(entry, dict)]
    images = {entry["id"] for entry in entries if is_int(entry.get("id"))}
    categories = {category["id"] for category in info["categories"]}
    seen: set[Any] = set()
    for annotation in info["annotations"]:
        problems += _check_annotation(annotation, images, categories, seen, path)
    return problems


def _load(name: str, source: InstanceSource) -> list[dict[str, Any]]:
    path, image_root = source.locate()
    raise_if_any(check_instances(read_json(path, INSTANCES_JSON), path, image_root), path)
    # The classes of a model may stand there (`describe_classes`). Those of the JSON, which
    # load_coco_json sets, count from now on, and Detectron2's metadata refuses other values.
    for key in InstanceMetadata._LAZY:
        MetadataCatalog.get(name).__dict__.pop(key, None)
    return load_coco_json(path, image_root, name)


def _check_categories(info: dict[str, Any], path: str) -> list[Problem]:
    categories = info.get("categories")
    mend = "list each class once, as {'id': 1, 'name': 'car'}"
    if not isinstance(categories, list) or not categories:
        return [Problem("no-categories", path, "no list 'categories' with entries", mend)]
    good = [
        c
        for c in categories
        if isinstance(c, dict) and is_int(c.get("id")) and isinstance(c.get("name"), str)
    ]
    if len(good) < len(categories):
        bad = next(i for i, c in enumerate(categories) if c not in good)
        return [Problem("bad-category", f"{path}, category {bad}", "no 'id' and 'name'", mend)]
    if len({c["id"] for c in good}) < len(good):
        return [Problem("duplicate-category", path, "an id of categories occurs twice", mend)]
    return []


def _check_images(images: Sequence[Any], path: str, image_root: str) -> list[Problem]:
    problems = []
    index = FolderIndex(image_root)
    ids: set[Any] = set()
    for number, entry in enumerate(images):
        if not isinstance(entry, dict) or not is_int(entry.get("id")):
            where = f"{path}, images entry {number}"
            problems.append(
                Problem("bad-image", where, "no integer 'id'", "give each image an integer id")
            )
            continue
        where = f"{path}, image id {entry['id']}"
        if entry["id"] in ids:
            problems.append(
                Problem("duplicate-image-id", where, "occurs twice in images", "renumber one")
            )
        ids.add(entry["id"])
        sides = [entry.get("height"), entry.get("width")]
        if not all(is_int(side) and side > 0 for side in sides):
            fix = "write its size in pixels"
            problems.append(Problem("bad-size", where, "no height and width", fix))
        if not safe_name(entry.get("file_name")):
            problems.append(
                Problem(
                    "unsafe-name",
                    where,
                    "file_name is no relative path inside the root folder, without '..'",
                    "write the path relative to the image root",
                )
            )
        elif image_root and not index.has(entry["file_name"]):
            missing = os.path.join(image_root, entry["file_name"])
            problems.append(
                Problem(
                    "missing-image",
                    where,
                    f"no image {missing}",
                    "copy it there or correct the image root",
                )
            )
    return problems


def _check_annotation(
    annotation: Any, images: set[Any], categories: set[int], seen: set[Any], path: str
) -> list[Problem]:
    if not isinstance(annotation, dict) or not is_int(annotation.get("id")):
        return [
            Problem("bad-annotation", path, "an annotation without integer 'id'", "number them")
        ]
    where = f"{path}, annotation id {annotation['id']}"
    problems = []
    if annotation["id"] in seen:
        problems.append(Problem("duplicate-annotation", where, "occurs twice", "renumber one"))
    seen.add(annotation["id"])
    for key, known, kind in (
        ("image_id", images, "no-image-entry"),
        ("category_id", categories, "unknown-category"),
    ):
        if not is_int(annotation.get(key)) or annotation[key] not in known:
            problems.append(
                Problem(kind, where, f"its {key} is not in the JSON", f"correct its {key}")
            )
    if not _is_box(annotation.get("bbox")):
        problems.append(
            Problem("bad-bbox", where, "bbox is not [x, y, width, height]", "write it in pixels")
        )
    if not _is_segmentation(annotation.get("segmentation")):
        problems.append(
            Problem(
                "no-mask",
                where,
                "segmentation is neither polygons of three points or more nor run lengths "
                "('size' and 'counts')",
                "give each instance a mask; boxes alone are not enough",
            )
        )
    return problems


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_segmentation(value: Any) -> bool:
    if isinstance(value, dict):
        size = value.get("size")
        counts = isinstance(value.get("counts"), (str, list))
        return counts and isinstance(size, list) and len(size) == 2 and all(map(is_int, size))
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 for p in value)
        and all(_is_number(coordinate) for polygon in value for coordinate in polygon)
    )
