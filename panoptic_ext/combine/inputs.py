"""Instance and semantic predictions of any model, from the files that evaluators write.

Instances: COCO detection results, a list of objects with image_id, category_id (dataset id), score
and segmentation (run lengths). Semantic predictions: a folder of label PNGs, or COCO's results for
stuff, a list of objects with file_name, category_id and segmentation. Detectron2's COCOEvaluator
and SemSegEvaluator, and panoptic_ext's, write the JSONs.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from panoptic_ext.combine.images import ImageEntry, ImageList
from panoptic_ext.data.coco.json_file import load_json
from panoptic_ext.data.coco.label_png import ExpectedSize, read_class_map
from panoptic_ext.data.coco.rle import decode_window, run_lengths
from panoptic_ext.errors import DatasetError, EvaluationError, check_known, listed, quoted
from panoptic_ext.regular_files import RESULTS_JSON

__all__ = [
    "SEMANTIC_IDS",
    "InstanceResults",
    "SemanticFolder",
    "SemanticPredictions",
    "SemanticResults",
    "open_semantic",
]

SEMANTIC_IDS = ("dataset", "contiguous")
VOID = -1
_HOW_TO_WRITE = (
    "check the path, or evaluate again with TEST.WRITE_PREDICTIONS True: without it semantic "
    "predictions are not written"
)


class SemanticPredictions(Protocol):
    """Semantic predictions of some images.

    Attributes:
        path: of their file or folder.
        ignored: file names that belong to no image.
    """

    path: str
    ignored: list[str]

    def has(self, image: ImageEntry) -> bool:
        """Whether there is a prediction of this image."""

    def labels(self, image: ImageEntry) -> np.ndarray:
        """(H, W) int64 contiguous ids, -1 void; EvaluationError if they cannot be read."""


class InstanceResults:
    """COCO detection results, by image."""

    def __init__(self, path: str, images: ImageList):
        """
        Args:
            path: of the JSON.
            images: of the data set.

        Raises:
            EvaluationError: no such file, another format, or ids of another data set.
        """
        self.path = path
        rows = _read_list(path, "instance results")
        expected = "image_id, category_id, score and segmentation (run lengths)"
        for number, row in enumerate(rows):
            _check_keys(row, ("image_id", "category_id", "score", "segmentation"), path, number,
                        expected)  # fmt: skip
            if not isinstance(row["score"], (int, float)) or not math.isfinite(row["score"]):
                raise EvaluationError(
                    f"{path}, entry {number}: score {quoted(row['score'])}; expected a finite "
                    "number"
                )
        things = {c.id for c in images.categories if c.isthing}
        _check_categories({r["category_id"] for r in rows}, things, images, path, "things")
        by_id = images.by_ids((r["image_id"] for r in rows), path)
        self._rows: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            self._rows[by_id[row["image_id"]].image_id].append(row)

    def of(self, image: ImageEntry) -> list[dict[str, Any]]:
        """The rows of an image, in the order of the file."""
        return self._rows.get(image.image_id, [])

    def window(self, image: ImageEntry, row: dict[str, Any]) -> tuple[np.ndarray, int, int]:
        """The mask of a row, see `decode_window`; EvaluationError if it is damaged."""
        where = f"{self.path}, an instance of image {quoted(image.image_id)}"
        lengths = run_lengths(row["segmentation"], image.size, where)
        return decode_window(lengths, image.size[0])


class _Classes:
    """Converts the ids in semantic predictions to contiguous ones."""

    def __init__(self, images: ImageList, ids: str, ignore_label: int):
        check_known("kind of semantic ids", ids, SEMANTIC_IDS, error=EvaluationError)
        self._kind, self._where = ids, images.where
        count = len(images.categories)
        self._table = images.contiguous if ids == "dataset" else {i: i for i in range(count)}
        # Data sets use 0 for void. Detectron2's "separated" metadata uses it for all things.
        self._void = {ignore_label, 0} - set(self._table)

    def contiguous(self, values: np.ndarray, where: str) -> np.ndarray:
        """Convert an int64 array of ids; returns the same shape, -1 void."""
        # The lookup is done once for each distinct id, not for each pixel.
        labels, inverse = np.unique(values, return_inverse=True)
        unknown = [v for v in labels.tolist() if v not in self._table and v not in self._void]
        if unknown:
            other = SEMANTIC_IDS[1 - SEMANTIC_IDS.index(self._kind)]
            raise EvaluationError(
                f"{where}: labels {listed(unknown)} are no {self._kind} ids of the categories of"
                f" {self._where} ({listed(sorted(self._table))}); read them as {other} ids"
                " (--semantic-ids), or name the label of void (--ignore-label)"
            )
        table = np.array([self._table.get(v, VOID) for v in labels.tolist()], np.int64)
        return table[inverse].reshape(values.shape)


class SemanticResults:
    """Semantic predictions as COCO's JSON of run lengths; where rows overlap, the last one counts.

    Attributes:
        ignored: always empty, because a row that belongs to no image is an error.
    """

    def __init__(
        self, path: str, images: ImageList, *, ids: str = "dataset", ignore_label: int = 255
    ):
        """
        Args:
            path: of the JSON.
            images: of the data set.
            ids: kind of its category_id, "dataset" or "contiguous".
            ignore_label: a category_id that means void.

        Raises:
            EvaluationError: no such file, another format, or names of other images.
        """
        self.path = path
        self.ignored: list[str] = []
        self._classes = _Classes(images, ids, ignore_label)
        if not os.path.lexists(path):
            raise EvaluationError(f"semantic results {path} do not exist; {_HOW_TO_WRITE}")
        rows = _read_list(path, "semantic results")
        if not rows:
            raise EvaluationError(f"semantic results {path} hold no prediction; {_HOW_TO_WRITE}")
        by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for number, row in enumerate(rows):
            _check_keys(row, ("file_name", "category_id", "segmentation"), path, number,
                        "file_name, category_id and segmentation (run lengths)")  # fmt: skip
            by_name[str(row["file_name"])].append(row)
        self._rows: dict[Any, list[dict[str, Any]]] = {}
        for name, image_rows in by_name.items():
            image = images.by_name(name)
            if image is None or image.image_id in self._rows:
                what = (
                    "no image" if image is None else f"image {quoted(image.image_id)} a second time"
                )
                raise EvaluationError(
                    f"{path}: file_name {quoted(name)} is {what} of {images.where}; expected the "
                    f"images' file names, such as {listed(i.file_name for i in images.images[:2])}"
                )
            self._rows[image.image_id] = image_rows

    def has(self, image: ImageEntry) -> bool:
        return image.image_id in self._rows

    def labels(self, image: ImageEntry) -> np.ndarray:
        labels = np.full(image.size, VOID, np.int64)
        for row in self._rows[image.image_id]:
            category_id = row["category_id"]
            where = f"{self.path}, category {quoted(category_id)} of image {quoted(image.image_id)}"
            category = self._classes.contiguous(np.array([category_id]), where)[0]
            window, top, left = decode_window(
                run_lengths(row["segmentation"], image.size, where), image.size[0]
            )
            part = labels[top : top + window.shape[0], left : left + window.shape[1]]
            part[window] = category
        return labels


class SemanticFolder:
    """Semantic predictions as a folder of label PNGs, grey or palette, named like the images.

    Attributes:
        ignored: PNGs that belong to no image, relative to the folder.
    """

    def __init__(
        self, folder: str, images: ImageList, *, ids: str = "dataset", ignore_label: int = 255
    ):
        """
        Args:
            folder: of the PNGs; sub-folders are searched too.
            images: of the data set.
            ids: kind of ids in their pixels, "dataset" or "contiguous".
            ignore_label: value of void pixels.

        Raises:
            EvaluationError: the folder has no PNG of any image, or two of the same image.
        """
        self._classes = _Classes(images, ids, ignore_label)
        self.path = folder
        self._paths: dict[Any, str] = {}
        self.ignored: list[str] = []
        for name in _pngs(folder):
            image = images.by_name(name)
            if image is None:
                self.ignored.append(name)
                continue
            if image.image_id in self._paths:
                raise EvaluationError(
                    f"{folder} has two PNGs of image {quoted(image.image_id)}: {name} and"
                    f" {os.path.relpath(self._paths[image.image_id], folder)}; keep one of them"
                )
            self._paths[image.image_id] = os.path.join(folder, name)
        if not self._paths:
            raise EvaluationError(
                f"{folder} has no PNG named like an image of {images.where}"
                f" ({listed(i.file_name for i in images.images[:2])}); it has"
                f" {listed(self.ignored) or 'none at all'}"
            )

    def has(self, image: ImageEntry) -> bool:
        return image.image_id in self._paths

    def labels(self, image: ImageEntry) -> np.ndarray:
        path = self._paths[image.image_id]
        return self._classes.contiguous(_read_labels(path, image), path)


def open_semantic(
    path: str, images: ImageList, *, ids: str = "dataset", ignore_label: int = 255
) -> SemanticPredictions:
    """Open a `SemanticFolder` or, for a file, `SemanticResults`; the arguments are theirs."""
    if os.path.isdir(path):
        return SemanticFolder(path, images, ids=ids, ignore_label=ignore_label)
    return SemanticResults(path, images, ids=ids, ignore_label=ignore_label)


def _read_labels(path: str, image: ImageEntry) -> np.ndarray:
    """(H, W) class ids of the label PNG of an image."""
    expected = ExpectedSize(
        *image.size,
        f"image {quoted(image.image_id)} is",
        "predictions must be of the original resolution",
    )
    try:
        return read_class_map(path, size=expected)
    except DatasetError as error:
        raise EvaluationError(str(error)) from error


def _pngs(folder: str) -> Iterator[str]:
    """Paths of the PNGs in a folder and its sub-folders, relative to it."""
    for root, folders, names in os.walk(folder):
        # In place, because os.walk reads the list: the order is the same on every file system.
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(".png") and not name.startswith("."):
                yield os.path.relpath(os.path.join(root, name), folder)


def _read_list(path: str, what: str) -> list[Any]:
    rows = load_json(path, dataclasses.replace(RESULTS_JSON, name=what), error=EvaluationError)
    if not isinstance(rows, list):
        raise EvaluationError(
            f"{what} {path} hold a {type(rows).__name__}; expected a list of predictions, as"
            " Detectron2's evaluators write (a COCO annotation file is another format)"
        )
    return rows


def _check_keys(row: Any, keys: tuple[str, ...], path: str, number: int, expected: str) -> None:
    content = quoted(sorted(row)) if isinstance(row, dict) else quoted(row, 60)
    missing = [k for k in keys if not isinstance(row, dict) or k not in row]
    if missing:
        hint = ": a model without masks?" if missing == ["segmentation"] else ""
        raise EvaluationError(
            f"{path}, entry {number} has {content}{hint}; expected objects with {expected}"
        )
    for key in ("image_id", "category_id"):
        kinds = (int,) if key == "category_id" else (int, str)
        if key in keys and (not isinstance(row[key], kinds) or isinstance(row[key], bool)):
            raise EvaluationError(
                f"{path}, entry {number}: {key} {quoted(row[key], 60)}; expected a whole number"
                + (" or a string" if str in kinds else "")
            )


def _check_categories(
    category_ids: set[int], known: set[int], images: ImageList, path: str, kind: str
) -> None:
    wrong = sorted(category_ids - known)
    if not wrong:
        return
    stuff = [c for c in wrong if c in images.contiguous]
    raise EvaluationError(
        f"{path}: category_id {listed(wrong)} are not ids of {kind} of {images.where}:"
        f" {listed(sorted(known))}"
        + (f"; {listed(stuff)} are stuff there" if stuff else "")
        + ". Write the ids of the data set's JSON, not contiguous ones"
    )
