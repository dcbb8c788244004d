"""Register and load data sets in COCO panoptic format.

There are three kinds of id. A dataset_id is the id of a category in the JSON. A contiguous id is
the position of a category in the JSON's `categories` (0..K-1, things and stuff in one space);
records, models and metadata use it. A segment id is a value in the PNG and identifies a segment of
an image.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from panoptic_ext.data.coco.categories import Category
from panoptic_ext.data.coco.divisor import segments_of_png
from panoptic_ext.data.coco.label_png import check_encoding
from panoptic_ext.data.coco.problems import Problem, raise_if_any
from panoptic_ext.data.datasets.file_search import FolderIndex
from panoptic_ext.data.datasets.metadata import ClassesOfModel, PanopticMetadata, PanopticSource
from panoptic_ext.data.datasets.parsed import parsed_source
from panoptic_ext.data.datasets.same_source import check_name, other_content, source_differences
from panoptic_ext.errors import DatasetError, quoted, shortened

__all__ = [
    "load_panoptic",
    "load_source",
    "missing_file_problems",
    "register_panoptic",
    "register_source",
]

logger = logging.getLogger(__name__)


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
        name: the name in DatasetCatalog and MetadataCatalog.
        json: the COCO panoptic JSON, which also defines class names, things and colours.
        image_root: folder of the images, of any extension.
        png_root: folder of the label PNGs.
        encoding: "rgb" (COCO) or "divisor" (category * label_divisor + instance in grey PNGs).
        label_divisor, ignore_label, evaluator_type: as in Detectron2's metadata.
        classes: categories that replace the JSON's `categories`.

    Raises:
        DatasetError: another data set is registered under the name; the message lists the
            differences.
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
    """Register `source` under `name`; `replace` permits replacing an earlier source."""
    old = MetadataCatalog.get(name) if name in MetadataCatalog else None
    check_name(name, old, PanopticMetadata)
    ours = isinstance(old, PanopticMetadata)
    if name in DatasetCatalog and old is not None:  # always, by `check_name`
        differences = source_differences(old.source, source)
        if not differences:
            return
        if not replace:
            raise other_content(name, differences)
        DatasetCatalog.remove(name)
    if old is not None:
        # `MetadataCatalog.get` creates empty metadata for any name, which is no registration.
        extra = sorted(set(vars(old)) - {"name"})
        if extra and not ours and not isinstance(old, ClassesOfModel):
            raise DatasetError(
                f"metadata of {quoted(name)} exists already, with {extra}; choose another name"
            )
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, partial(_load_registered, name, source))
    MetadataCatalog[name] = PanopticMetadata(name, source)


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
    """Load the records of a data set without registering it.

    The arguments are those of `register_panoptic`.

    Returns:
        One dict for each annotated image: file_name, image_id (as in the JSON), height, width,
        pan_seg_file_name, pan_seg_encoding, segments_info (id, contiguous category_id, isthing,
        iscrowd, area, optional bbox). Each call returns new dicts. Images without an annotation
        are left out. Images with an empty segments_info, which are all void, are included.

    Raises:
        DatasetError: the JSON is invalid or files are missing; the message lists the problems.
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
    """Load the records and categories of a source; see `load_panoptic`."""
    parsed = parsed_source(source)
    path, categories = parsed.path, parsed.categories
    # Image ids are compared as text, so that 7 and "7" are the same image.
    images = {str(entry["id"]): entry for entry in parsed.content["images"]}
    image_files, png_files = FolderIndex(parsed.image_root), FolderIndex(parsed.png_root)
    problems: list[Problem] = []
    contiguous = {c.id: (i, c.isthing) for i, c in enumerate(categories)}
    isthing = {c.id: c.isthing for c in categories}
    records = []
    for annotation in parsed.content["annotations"]:
        entry = images[str(annotation["image_id"])]
        name = source.image_name(entry)
        png = os.path.join(parsed.png_root, annotation["file_name"])
        image_file = image_files.find_image(name, exclude=png)
        problems += missing_file_problems(
            entry["id"], name, image_file, annotation["file_name"], png_files, parsed.image_root
        )
        records.append(
            {
                "file_name": os.path.join(parsed.image_root, image_file or name),
                "image_id": entry["id"],
                "height": entry["height"],
                "width": entry["width"],
                "pan_seg_file_name": png,
                "pan_seg_encoding": source.encoding,
                "segments_info": annotation.get("segments_info"),
            }
        )
    # All missing files are reported together, before segments_info is derived from any label map.
    raise_if_any(problems, path)
    for record in records:
        segments = record["segments_info"]
        if segments is None:
            segments = segments_of_png(record["pan_seg_file_name"], source.label_divisor, isthing)
        record["segments_info"] = [_convert(s, contiguous) for s in segments]
    skipped = len(images) - len(records)
    if skipped:
        logger.info(
            "%s: %d of %d images have no annotation and are left out", path, skipped, len(images)
        )
    return records, categories


def missing_file_problems(
    image_id: Any,
    image: str,
    image_file: str | None,
    png: str,
    png_files: FolderIndex,
    image_root: str,
) -> list[Problem]:
    """Return the problems of a sample: `image_file` is None, or the label map `png` is missing."""
    problems = []
    where = f"image id {quoted(image_id)}"
    if image_file is None:
        problems.append(
            Problem(
                "missing-image",
                where,
                f"no image {shortened(os.path.join(image_root, image), 300)}, nor one of that "
                "name with another extension (its label map does not count)",
                "copy it there or correct the image root",
            )
        )
    if not png_files.has(png):
        problems.append(
            Problem(
                "missing-png",
                where,
                f"no label map {shortened(os.path.join(png_files.root, png), 300)}",
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
