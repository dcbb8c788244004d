"""Any data set in COCO panoptic format: one call to register it, one loader for all of them.

Three kinds of id: a dataset_id is a category's id in the JSON; a contiguous id is its position in
the JSON's `categories` (0..K-1, things and stuff in one space), which is what records, models and
metadata use; a segment id is a value in the PNG and names one segment of one image.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from panoptic_ext.data.datasets.files import FolderIndex, expand, search
from panoptic_ext.data.datasets.problems import Problem, raise_if_any
from panoptic_ext.data.datasets.structure import (
    Category,
    check_structure,
    read_categories,
    read_json,
)
from panoptic_ext.data.id_map import check_encoding, find_runs, read_id_map
from panoptic_ext.errors import DatasetError

__all__ = [
    "PanopticMetadata",
    "PanopticSource",
    "load_panoptic",
    "load_source",
    "missing_files",
    "register_panoptic",
    "register_source",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PanopticSource:
    """Where a data set lies and how it is written; reads nothing until a method is called.

    Attributes:
        json, image_root, png_root: paths; relative ones are looked up in `search_path`.
        encoding: of the label PNGs, see `panoptic_ext.data.id_map`.
        label_divisor: of the "divisor" encoding.
        ignore_label: value of void pixels in `sem_seg`; outside 0..K-1.
        evaluator_type: as Detectron2's metadata.
        classes: categories to use in place of the JSON's; None reads them from it.
        search_path: folders for `files.search`; None takes relative paths as they are.
    """

    json: str
    image_root: str
    png_root: str
    encoding: str = "rgb"
    label_divisor: int = 1000
    ignore_label: int = 255
    evaluator_type: str = "coco_panoptic_seg"
    classes: tuple[Category, ...] | None = None
    search_path: tuple[str, ...] | None = None

    def locate(self) -> tuple[str, str, str]:
        """The paths of JSON, image root and PNG root."""
        given = {
            "panoptic JSON": self.json,
            "image root": self.image_root,
            "PNG root": self.png_root,
        }
        if self.search_path is None:
            json, image_root, png_root = map(expand, given.values())
        else:
            json, image_root, png_root = (
                search(path, self.search_path, what=what) for what, path in given.items()
            )
        return json, image_root, png_root

    def image_name(self, entry: dict[str, Any]) -> str:
        """The file of an entry of `images`, relative to the image root."""
        return str(entry["file_name"])


class PanopticMetadata(Metadata):
    """Metadata whose class lists and paths are found when they are first asked for.

    Everything else is as in Detectron2's Metadata: the values, once there, are plain attributes.
    """

    __slots__ = ("_source",)

    _PATHS = ("panoptic_json", "image_root", "panoptic_root")
    _CLASSES = (
        "thing_classes",
        "stuff_classes",
        "thing_colors",
        "stuff_colors",
        "thing_dataset_id_to_contiguous_id",
        "stuff_dataset_id_to_contiguous_id",
        "isthing",
    )

    def __init__(self, name: str, source: PanopticSource):
        super().__init__(
            name=name,
            label_divisor=source.label_divisor,
            ignore_label=source.ignore_label,
            evaluator_type=source.evaluator_type,
            panoptic_encoding=source.encoding,
        )
        object.__setattr__(self, "_source", source)

    @property
    def source(self) -> PanopticSource:
        """What was registered."""
        return self._source

    def __getattr__(self, key: str) -> Any:
        if key in PanopticMetadata._PATHS:
            self.__dict__.update(zip(self._PATHS, self._source.locate(), strict=True))
        elif key in PanopticMetadata._CLASSES:
            json = "" if self._source.classes else self.panoptic_json
            categories = self._source.classes or read_categories(read_json(json), json)
            self.fill(categories)
        else:
            return super().__getattr__(key)
        return self.__dict__[key]

    def __setattr__(self, key: str, value: Any) -> None:
        if key == "_source":
            raise AttributeError("_source is set by registration")
        super().__setattr__(key, value)

    def fill(self, categories: Sequence[Category]) -> None:
        """Set what follows from the categories."""
        if 0 <= self.ignore_label < len(categories):
            raise DatasetError(
                f"data set {self.name!r}: ignore_label {self.ignore_label} lies inside the class "
                f"range 0..{len(categories) - 1}; register it with ignore_label="
                f"{max(255, len(categories))}"
            )
        names = [c.name for c in categories]
        colors = [list(c.color) for c in categories]
        pairs = list(enumerate(categories))
        self.__dict__.update(
            thing_classes=names,
            stuff_classes=list(names),
            thing_colors=colors,
            stuff_colors=[list(c) for c in colors],
            thing_dataset_id_to_contiguous_id={c.id: i for i, c in pairs if c.isthing},
            stuff_dataset_id_to_contiguous_id={c.id: i for i, c in pairs if not c.isthing},
            isthing=tuple(c.isthing for c in categories),
        )

    def as_dict(self) -> dict[str, Any]:
        """All metadata; reads what was not read yet."""
        for key in (self._PATHS[0], self._CLASSES[0]):
            getattr(self, key)
        return super().as_dict()

    def __reduce__(self) -> tuple:
        return _restore, (self.name, self._source, dict(self.__dict__))


def _restore(name: str, source: PanopticSource, values: dict[str, Any]) -> PanopticMetadata:
    metadata = PanopticMetadata(name, source)
    metadata.__dict__.update(values)
    return metadata


def register_panoptic(
    name: str,
    json: str | os.PathLike,
    image_root: str | os.PathLike,
    png_root: str | os.PathLike,
    *,
    encoding: str = "rgb",
    label_divisor: int = 1000,
    ignore_label: int = 255,
    evaluator_type: str = "coco_panoptic_seg",
    classes: Sequence[Category] | None = None,
) -> None:
    """Register a data set in COCO panoptic format; nothing is read until it is used.

    Args:
        name: under which DatasetCatalog and MetadataCatalog give it.
        json: the COCO panoptic JSON; class names, things and colours come from it.
        image_root: folder of the images, of any extension.
        png_root: folder of the label PNGs.
        encoding: "rgb" (COCO) or "divisor" (category * label_divisor + instance in grey PNGs).
        label_divisor, ignore_label, evaluator_type: as in Detectron2's metadata.
        classes: used in place of the JSON's `categories`.

    Raises:
        DatasetError: the name holds something else already; the message says what differs.
    """
    check_encoding(encoding)
    source = PanopticSource(
        json=os.fspath(json),
        image_root=os.fspath(image_root),
        png_root=os.fspath(png_root),
        encoding=encoding,
        label_divisor=label_divisor,
        ignore_label=ignore_label,
        evaluator_type=evaluator_type,
        classes=None if classes is None else tuple(Category(*c) for c in classes),
    )
    register_source(name, source)


def register_source(name: str, source: PanopticSource, *, replace: bool = False) -> None:
    """Register `source` under `name`; with `replace`, in place of what this function put there."""
    if not name:
        raise DatasetError("a data set needs a name, found an empty one")
    old = MetadataCatalog.get(name) if name in MetadataCatalog else None
    ours = isinstance(old, PanopticMetadata)
    if name in DatasetCatalog:
        if not isinstance(old, PanopticMetadata):
            raise DatasetError(
                f"data set name {name!r} is taken by another registration; choose another name"
            )
        differences = _differences(old.source, source)
        if not differences:
            return
        if not replace:
            raise DatasetError(
                f"data set {name!r} is registered with other content: "
                + "; ".join(differences)
                + ". Choose another name, or remove it from DatasetCatalog and MetadataCatalog"
            )
        DatasetCatalog.remove(name)
    if old is not None:
        extra = sorted(set(vars(old)) - {"name"})
        if extra and not ours:
            raise DatasetError(
                f"metadata of {name!r} exists already, with {extra}; choose another name"
            )
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, partial(_load_registered, name, source))
    MetadataCatalog[name] = PanopticMetadata(name, source)


def _differences(old: PanopticSource, new: PanopticSource) -> list[str]:
    if type(old) is not type(new):
        return [f"a {type(old).__name__} there, a {type(new).__name__} here"]
    return [
        f"{field.name} is {getattr(old, field.name)!r} there, {getattr(new, field.name)!r} here"
        for field in dataclasses.fields(new)
        if getattr(old, field.name) != getattr(new, field.name)
    ]


def _load_registered(name: str, source: PanopticSource) -> list[dict[str, Any]]:
    records, categories = load_source(source)
    metadata = MetadataCatalog.get(name)
    if isinstance(metadata, PanopticMetadata) and "isthing" not in vars(metadata):
        metadata.fill(categories)
    return records


def load_panoptic(
    json: str | os.PathLike,
    image_root: str | os.PathLike,
    png_root: str | os.PathLike,
    *,
    encoding: str = "rgb",
    label_divisor: int = 1000,
    classes: Sequence[Category] | None = None,
) -> list[dict[str, Any]]:
    """Records of a data set, without registering it. Arguments as `register_panoptic`.

    Returns:
        one dict for each annotated image: file_name, image_id (as in the JSON), height, width,
        pan_seg_file_name, pan_seg_encoding, segments_info (id, contiguous category_id, isthing,
        iscrowd, area, bbox where given). New dicts at each call. Images without an annotation
        are left out; those with an empty segments_info, all void, stay.

    Raises:
        DatasetError: the JSON or the files are not as they should be; lists the problems.
    """
    check_encoding(encoding)
    source = PanopticSource(
        os.fspath(json),
        os.fspath(image_root),
        os.fspath(png_root),
        encoding=encoding,
        label_divisor=label_divisor,
        classes=None if classes is None else tuple(Category(*c) for c in classes),
    )
    return load_source(source)[0]


def load_source(source: PanopticSource) -> tuple[list[dict[str, Any]], tuple[Category, ...]]:
    """Records and categories of a source; see `load_panoptic`."""
    path, image_root, png_root = source.locate()
    info = read_json(path)
    problems = check_structure(info, path, encoding=source.encoding, categories=source.classes)
    raise_if_any(problems, path)
    categories = source.classes or read_categories(info, path)
    images = {str(entry["id"]): entry for entry in info["images"]}
    image_files, png_files = FolderIndex(image_root), FolderIndex(png_root)
    contiguous = {c.id: (i, c.isthing) for i, c in enumerate(categories)}
    records = []
    for annotation in info["annotations"]:
        entry = images[str(annotation["image_id"])]
        name = source.image_name(entry)
        found = image_files.find_image(name)
        problems += missing_files(
            entry["id"], name, found, annotation["file_name"], png_files, image_root
        )
        records.append(
            {
                "file_name": os.path.join(image_root, found or name),
                "image_id": entry["id"],
                "height": entry["height"],
                "width": entry["width"],
                "pan_seg_file_name": os.path.join(png_root, annotation["file_name"]),
                "pan_seg_encoding": source.encoding,
                "segments_info": annotation.get("segments_info"),
            }
        )
    raise_if_any(problems, path)
    for record in records:
        segments = record["segments_info"]
        if segments is None:
            segments = _segments_of_png(
                record["pan_seg_file_name"], source.label_divisor, contiguous
            )
        record["segments_info"] = [_convert(s, contiguous) for s in segments]
    skipped = len(images) - len(records)
    if skipped:
        logger.info(
            "%s: %d of %d images have no annotation and are left out", path, skipped, len(images)
        )
    return records, categories


def missing_files(
    image_id: Any,
    image: str,
    found: str | None,
    png: str,
    png_files: FolderIndex,
    image_root: str,
) -> list[Problem]:
    """Problems where `found`, the image's file, is None or the label map `png` is not there."""
    problems = []
    where = f"image id {image_id!r}"
    if found is None:
        problems.append(
            Problem(
                "missing-image",
                where,
                f"no image {os.path.join(image_root, image)}, nor one of that name with another "
                "extension",
                "copy it there or correct the image root",
            )
        )
    if not png_files.has(png):
        problems.append(
            Problem(
                "missing-png",
                where,
                f"no label map {os.path.join(png_files.root, png)}",
                "copy it there or correct the PNG root",
            )
        )
    return problems


def _convert(segment: dict[str, Any], contiguous: dict[int, tuple[int, bool]]) -> dict[str, Any]:
    category, isthing = contiguous[segment["category_id"]]
    out = {
        "id": segment["id"],
        "category_id": category,
        "isthing": isthing,
        "iscrowd": int(segment["iscrowd"]),
        "area": segment["area"],
    }
    if "bbox" in segment:
        out["bbox"] = segment["bbox"]
    return out


def _segments_of_png(
    path: str, label_divisor: int, contiguous: dict[int, tuple[int, bool]]
) -> list[dict[str, Any]]:
    """Segments of a divisor-encoded map that has no segments_info.

    As in Cityscapes: a value below the divisor is a category without instances, which is a crowd
    where the category is a thing.
    """
    runs = find_runs(read_id_map(path, "divisor"))
    ids, inverse = np.unique(runs.values, return_inverse=True)
    areas = np.bincount(inverse, weights=runs.lengths, minlength=len(ids)).astype(int)
    segments = []
    for i, area in zip(ids.tolist(), areas.tolist(), strict=True):
        category = i if i < label_divisor else i // label_divisor
        if i == 0:
            continue
        if category not in contiguous:
            raise DatasetError(
                f"label map {path}: value {i} is of category {category} (divisor {label_divisor}), "
                f"which is not among {sorted(contiguous)}; correct label_divisor or the categories"
            )
        crowd = int(i < label_divisor and contiguous[category][1])
        segments.append({"id": i, "category_id": category, "iscrowd": crowd, "area": area})
    return segments
