"""Read COCO panoptic JSON files and their label PNGs for the evaluation, by image_id."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from panoptic_ext.data.coco.categories import Category
from panoptic_ext.data.coco.divisor import segments_of_label_map
from panoptic_ext.data.coco.json_checks import check_structure, read_categories
from panoptic_ext.data.coco.json_file import ImageId, read_json
from panoptic_ext.data.coco.label_png import ExpectedSize, read_png_size, read_runs
from panoptic_ext.data.coco.problems import raise_if_any
from panoptic_ext.data.coco.runs import Runs
from panoptic_ext.data.coco.segment_table import SegmentTable
from panoptic_ext.errors import DatasetError, EvaluationError, quoted

__all__ = ["Annotation", "PanopticFiles"]


@dataclass(frozen=True)
class Annotation:
    """One image of a COCO panoptic JSON.

    Attributes:
        image_id: as in the JSON.
        file_name: of the label PNG, relative to the PNG folder.
        segments_info: as in the JSON, with dataset category ids; None where it is
            missing, since a "divisor" PNG holds categories itself.
    """

    image_id: ImageId
    file_name: str
    segments_info: list[dict[str, Any]] | None


class PanopticFiles:
    """The annotations of one JSON and the folder of its PNGs. Label maps are read on demand.

    Attributes:
        content: the JSON without its annotations.
        annotations: {image_id: Annotation}, in the order of the JSON.
        category_list: the categories, in the order of the JSON.
        categories: {category id: {"id", "name", "isthing", "color"}}, the same.
    """

    def __init__(
        self,
        path: str,
        root: str,
        *,
        encoding: str = "rgb",
        label_divisor: int = 1000,
        categories: Sequence[Category] | None = None,
        is_truth: bool = True,
        content: dict[str, Any] | None = None,
    ):
        """
        Args:
            path: of the JSON.
            root: folder of the PNGs.
            encoding: of the PNGs, "rgb" or "divisor"; then segments_info may be missing.
            label_divisor: of the "divisor" encoding.
            categories: replace those of the JSON.
            is_truth: segments must have area and iscrowd.
            content: the JSON, if it has been read and checked already; it is not changed.

        Raises:
            EvaluationError: the file or folder is missing or not in COCO panoptic format.
        """
        self.path, self.root, self.encoding = path, root, encoding
        # Content is used unchecked only together with categories: its caller has checked both.
        if content is None or categories is None:
            content, categories = _read(path, encoding, categories, is_truth)
        self.category_list = categories
        if not os.path.isdir(root):
            raise EvaluationError(
                f"the folder of the label PNGs of {path} is missing: {root}; name the right one "
                "(--gt-root, --pred-root)"
            )
        self._label_divisor = label_divisor
        self.categories: dict[int, dict] = {c.id: c._asdict() for c in self.category_list}
        self.annotations: dict[ImageId, Annotation] = {
            a["image_id"]: _annotation(a) for a in content["annotations"]
        }
        self.content = {key: value for key, value in content.items() if key != "annotations"}
        self._images = _images(content.get("images")) if is_truth else {}
        # The other JSON of an evaluation may hold the id 7 as "7", so `find` also compares text.
        self._by_name = {str(image_id): image_id for image_id in self.annotations}

    def find(self, image_id: ImageId) -> Annotation | None:
        """Return the annotation of an image, or None.

        The ids 7 and "7" are the same where the JSON has only one of them.
        """
        annotation = self.annotations.get(image_id)
        if annotation is None and str(image_id) in self._by_name:
            annotation = self.annotations[self._by_name[str(image_id)]]
        return annotation

    def image_names(self) -> dict[ImageId, str]:
        """{image id: name of the image's file without its suffix, "/" between folders}.

        It is that of the label PNG for an image that `images` lacks.
        """
        entries = _images(self.content.get("images"))
        names = {}
        for image_id, annotation in self.annotations.items():
            name = entries.get(str(image_id), {}).get("file_name")
            name = name if isinstance(name, str) else annotation.file_name
            names[image_id] = os.path.splitext(name.replace(os.sep, "/"))[0]
        return names

    def where(self, annotation: Annotation) -> str:
        """Return the text that names the image and its file in errors."""
        return f"image {quoted(annotation.image_id)} ({self._png(annotation)})"

    def table(self, annotation: Annotation, runs: Runs) -> SegmentTable:
        """The segments of an image.

        Args:
            annotation: of the image.
            runs: its label map, from `runs`.

        Raises:
            EvaluationError: the label map's own ids, without segments_info, are of no category.
        """
        if annotation.segments_info is not None:
            return SegmentTable.from_checked(annotation.segments_info)
        where = f"image {quoted(annotation.image_id)} in {self.path}"
        isthing = {c: bool(entry["isthing"]) for c, entry in self.categories.items()}
        segments = segments_of_label_map(runs, self._label_divisor, isthing)
        return SegmentTable.from_segments_info(segments, self.categories, where)

    def check_categories(self, truth: PanopticFiles) -> None:
        """Check that a category id has the same name here as in `truth`.

        Raises:
            EvaluationError: a category id has another name there, or none.
        """
        for category in _listed_categories(self.content, self.path):
            known = truth.categories.get(category["id"])
            if known is not None and known["name"] != category.get("name"):
                raise EvaluationError(
                    f"{self.path} calls category {category['id']} {quoted(category.get('name'))},"
                    f" {truth.path} calls it {quoted(known['name'])}; both must use the same "
                    "categories"
                )

    def size(self, annotation: Annotation) -> tuple[int, int] | None:
        """(H, W) of an image, from the header of its label PNG; None for what is no PNG.

        Raises:
            EvaluationError: the label PNG is no regular file, or the truth's JSON gives another
                size.
        """
        path, expected = self._png(annotation), self._expected_size(annotation)
        try:
            size = read_png_size(path)
            if size is not None and expected is not None:
                expected.check(path, *size)
        except DatasetError as error:
            raise EvaluationError(f"image {quoted(annotation.image_id)}: {error}") from error
        return size

    def image_entry(self, annotation: Annotation) -> dict[str, Any]:
        """The truth's entry of an image in `images`; {} where it has none."""
        return self._images.get(str(annotation.image_id), {})

    def size_in_json(self, annotation: Annotation) -> tuple[int, int] | None:
        """Return (H, W) of an image from the truth's JSON; None where that has no valid size."""
        entry = self.image_entry(annotation)
        height, width = entry.get("height"), entry.get("width")
        if type(height) is int and type(width) is int and min(height, width) > 0:
            return height, width
        return None

    def runs(self, annotation: Annotation) -> Runs:
        """Read the label PNG of an image.

        Raises:
            EvaluationError: missing, damaged, no label PNG, or the truth's JSON gives another size.
        """
        return read_runs(self._png(annotation), self.encoding, self._expected_size(annotation))

    def _expected_size(self, annotation: Annotation) -> ExpectedSize | None:
        size = self.size_in_json(annotation)
        return None if size is None else ExpectedSize(*size, f"{self.path} says")

    def _png(self, annotation: Annotation) -> str:
        return os.path.join(self.root, annotation.file_name)


def _read(
    path: str, encoding: str, categories: Sequence[Category] | None, is_truth: bool
) -> tuple[dict[str, Any], Sequence[Category]]:
    """The checked JSON and its categories.

    Raises:
        EvaluationError: all that the data set's own check finds in the JSON.
    """
    try:
        content = read_json(path)
        problems = check_structure(
            content,
            path,
            encoding=encoding,
            categories=categories,
            needs_images=False,
            needs_area=is_truth,
        )
        raise_if_any(problems, path)
        return content, categories or read_categories(content, path)
    except DatasetError as error:
        raise EvaluationError(str(error)) from error


def _images(images: Any) -> dict[str, dict[str, Any]]:
    """{image id as text: entry} of the JSON's images, which need not be well-formed."""
    return {
        str(entry["id"]): entry
        for entry in (images if isinstance(images, list) else [])
        if isinstance(entry, dict) and isinstance(entry.get("id"), (int, str))
    }


def _listed_categories(content: dict[str, Any], path: str) -> list[dict[str, Any]]:
    """The categories of a JSON that need not have any."""
    categories = content.get("categories") or []
    wrong = [
        category
        for category in (categories if isinstance(categories, list) else [categories])
        if not isinstance(category, dict) or not isinstance(category.get("id"), int)
    ]
    if wrong or not isinstance(categories, list):
        # The first wrong entry is quoted, or the whole value where it is no list.
        raise EvaluationError(
            f"{path} has {quoted((*wrong, categories)[0], 100)} in categories; expected a list of "
            "objects with id and name"
        )
    return categories


def _annotation(annotation: dict[str, Any]) -> Annotation:
    return Annotation(
        annotation["image_id"], annotation["file_name"], annotation.get("segments_info")
    )
