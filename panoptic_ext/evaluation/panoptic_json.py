"""COCO panoptic JSON files, joined on image_id, as the evaluation needs them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from panoptic_ext.errors import EvaluationError, nearest

from .label_png import read_runs
from .label_runs import LabelRuns
from .segment_table import SegmentTable

__all__ = ["Annotation", "PanopticFiles", "read_panoptic_json", "safe_name"]

ImageId = int | str


@dataclass(frozen=True)
class Annotation:
    """One image of a COCO panoptic JSON.

    Attributes:
        image_id: as in the JSON.
        file_name: of the label PNG, relative to the PNG folder.
        segments_info: as in the JSON, with dataset category ids; None if the PNG says it all.
    """

    image_id: ImageId
    file_name: str
    segments_info: list[dict[str, Any]] | None


class PanopticFiles:
    """The annotations of one JSON and the folder of its PNGs; label maps are read when asked for.

    Attributes:
        content: the JSON without its annotations.
        annotations: {image_id: Annotation}, in the order of the JSON.
        categories: {category id: its dict}.
    """

    def __init__(
        self,
        path: str,
        root: str,
        *,
        encoding: str = "rgb",
        label_divisor: int = 1000,
        categories: Mapping[int, dict] | None = None,
        is_truth: bool = True,
    ):
        """
        Args:
            path: of the JSON.
            root: folder of the PNGs.
            encoding: of the PNGs, "rgb" or "divisor"; then segments_info may be missing.
            label_divisor: of the "divisor" encoding.
            categories: used in place of the file's own.
            is_truth: segments must have area and iscrowd.

        Raises:
            EvaluationError: the file or folder is missing or not in COCO panoptic format.
        """
        self.path, self.root, self.encoding, self._is_truth = path, root, encoding, is_truth
        self.content = read_panoptic_json(path)
        if not os.path.isdir(root):
            raise EvaluationError(f"the folder of the label PNGs of {path} is missing: {root}")
        self._label_divisor = label_divisor
        self.categories = (
            _read_categories(self.content, path) if categories is None else dict(categories)
        )
        self.annotations = _read_annotations(self.content.pop("annotations"), path, encoding)
        self._by_name = {str(image_id): image_id for image_id in self.annotations}

    def find(self, image_id: ImageId) -> Annotation | None:
        """The annotation of an image; 7 and "7" find each other if only one of them exists."""
        found = self.annotations.get(image_id)
        if found is None and str(image_id) in self._by_name:
            found = self.annotations[self._by_name[str(image_id)]]
        return found

    def where(self, annotation: Annotation) -> str:
        """Names the image and file in errors."""
        return f"image {annotation.image_id!r} ({os.path.join(self.root, annotation.file_name)})"

    def table(self, annotation: Annotation, runs: LabelRuns) -> SegmentTable:
        """The segments of an image.

        Args:
            annotation: of the image.
            runs: its label map, from `runs`.

        Raises:
            EvaluationError: wrong ids, unknown categories, or no area or iscrowd in a truth.
        """
        where = f"image {annotation.image_id!r} in {self.path}"
        segments = annotation.segments_info
        if segments is None:
            segments = self._segments_of_divisor(runs)
        for segment in segments if self._is_truth else ():
            for key in ("area", "iscrowd"):
                if key not in segment:
                    raise EvaluationError(
                        f"{where}: segment {segment.get('id')!r} has no {key!r}; expected the"
                        " fields of COCO's panoptic format: id, category_id, area, iscrowd"
                    )
        return SegmentTable.from_segments_info(segments, self.categories, where)

    def check_categories(self, truth: PanopticFiles) -> None:
        """Check that the file, where it names categories, means by them what `truth` does.

        Raises:
            EvaluationError: a category id has another name there.
        """
        for category in self.content.get("categories") or ():
            known = truth.categories.get(category.get("id"))
            if known is not None and known["name"] != category.get("name"):
                raise EvaluationError(
                    f"{self.path} calls category {category['id']} {category.get('name')!r},"
                    f" {truth.path} calls it {known['name']!r}; both must use the same categories"
                )

    def _segments_of_divisor(self, runs: LabelRuns) -> list[dict[str, Any]]:
        """As Cityscapes: an id below the divisor is a category without instances, crowd if thing.

        An unknown category stays for SegmentTable to report.
        """
        segments = []
        for segment_id, area in zip(*(a.tolist() for a in runs.areas()), strict=True):
            if segment_id == 0:
                continue
            whole = segment_id < self._label_divisor
            category = segment_id if whole else segment_id // self._label_divisor
            crowd = whole and bool(self.categories.get(category, {}).get("isthing"))
            segments.append(
                {"id": segment_id, "category_id": category, "iscrowd": crowd, "area": area}
            )
        return segments

    def runs(self, annotation: Annotation) -> LabelRuns:
        """Read the label PNG of an image.

        Raises:
            EvaluationError: missing, damaged or no label PNG.
        """
        return read_runs(os.path.join(self.root, annotation.file_name), self.encoding)


def read_panoptic_json(path: str) -> dict[str, Any]:
    """Read a JSON and check that it is COCO panoptic: the top level and its kind.

    Raises:
        EvaluationError: missing, empty or invalid file, or another kind of JSON.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            content = json.load(stream)
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise EvaluationError(f"{path} is not valid JSON: {error}") from error
    found = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(found, list):
        keys = sorted(content) if isinstance(content, dict) else type(content).__name__
        hint = nearest("annotations", content) if isinstance(content, dict) else ""
        raise EvaluationError(
            f"{path} has no list 'annotations' at its top level (found: {keys}){hint}; expected a"
            " COCO panoptic JSON"
        )
    if not found:
        raise EvaluationError(f"{path} has no annotations: there is nothing to evaluate")
    if isinstance(found[0], dict) and "segmentation" in found[0]:
        raise EvaluationError(
            f"{path} is a COCO instances JSON (its annotations have 'segmentation'); expected a"
            " panoptic one, whose annotations have 'segments_info' and 'file_name'"
        )
    return content


def safe_name(file_name: Any, path: str) -> str:
    """Check that a file name of a JSON stays below its folder, and return it.

    Raises:
        EvaluationError: not a string, absolute, or with "..".
    """
    parts = file_name.replace("\\", "/").split("/") if isinstance(file_name, str) else [".."]
    if ".." in parts or os.path.isabs(file_name) or not file_name:
        raise EvaluationError(
            f"{path} has the file_name {file_name!r}; expected a path below the PNG folder"
        )
    return file_name


def _read_categories(content: dict[str, Any], path: str) -> dict[int, dict]:
    categories: dict[int, dict] = {}
    if not content.get("categories"):
        raise EvaluationError(f"{path} has no 'categories'; expected id, name and isthing of each")
    for category in content["categories"]:
        missing = [key for key in ("id", "name", "isthing") if key not in category]
        if missing or category["isthing"] not in (0, 1):
            raise EvaluationError(
                f"{path}: the category {category} "
                + (f"has no {missing[0]!r}" if missing else "has an isthing that is not 0 or 1")
            )
        if category["id"] in categories:
            raise EvaluationError(f"{path}: category id {category['id']} occurs twice")
        categories[category["id"]] = category
    return categories


def _read_annotations(
    found: list[dict[str, Any]], path: str, encoding: str
) -> dict[ImageId, Annotation]:
    annotations: dict[ImageId, Annotation] = {}
    required = ("image_id", "file_name") + (("segments_info",) if encoding == "rgb" else ())
    for number, annotation in enumerate(found):
        missing = [k for k in required if k not in annotation]
        if missing:
            raise EvaluationError(f"{path}: annotation {number} has no {missing[0]!r}")
        image_id = annotation["image_id"]
        if image_id in annotations:
            raise EvaluationError(f"{path}: image_id {image_id!r} has two annotations")
        name = safe_name(annotation["file_name"], path)
        annotations[image_id] = Annotation(image_id, name, annotation.get("segments_info"))
    return annotations
