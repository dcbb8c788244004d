"""The images and categories of a data set, and how prediction files name them.

A dataset id is a category's id in the JSON, a contiguous id its position in `categories`.
"""

from __future__ import annotations

import itertools
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from panoptic_ext.data import Category, get_metadata, get_records
from panoptic_ext.data.coco.json_checks import read_categories, safe_name
from panoptic_ext.data.coco.json_file import ImageId, read_json
from panoptic_ext.data.coco.writer import png_name
from panoptic_ext.data.datasets.metadata import categories_of
from panoptic_ext.errors import DatasetError, EvaluationError, listed, quoted

__all__ = ["ImageEntry", "ImageList"]


@dataclass(frozen=True)
class ImageEntry:
    """One image.

    Attributes:
        image_id: as in the data set's JSON.
        file_name: of the image.
        png_name: of the label PNG to write, relative to its folder.
        size: (H, W) in pixels.
    """

    image_id: ImageId
    file_name: str
    png_name: str
    size: tuple[int, int]


class ImageList:
    """The images of a data set, in its order, and its categories.

    Attributes:
        where: names the data set in messages.
        images: its images.
        categories: in the order of their contiguous ids.
        contiguous: {dataset id: contiguous id}.
        thing_ids: contiguous ids of the things.
    """

    def __init__(self, where: str, images: Sequence[ImageEntry], categories: Sequence[Category]):
        """Raise EvaluationError if two images have the same id or the same PNG."""
        self.where = where
        self.images = tuple(images)
        self.categories = tuple(categories)
        self.contiguous = {c.id: i for i, c in enumerate(categories)}
        self.thing_ids = tuple(i for i, c in enumerate(categories) if c.isthing)
        self._by_id = {image.image_id: image for image in images}
        for kind, number in (
            ("id", len(self._by_id)),
            ("label PNG", len({i.png_name for i in images})),
        ):
            if number < len(images):
                raise EvaluationError(
                    f"{where}: two images have the same {kind}; give each image its own"
                )
        # A prediction's file may have the name of the image's file, of its label PNG or its id. The
        # first of these three that matches any image decides.
        self._names = [
            _NameIndex((name(image), image) for image in images)
            for name in (_file_name, _png_name, _id_name)
        ]

    @classmethod
    def of_dataset(cls, name: str) -> ImageList:
        """The images of a registered data set.

        Raises:
            DatasetError: it is not registered or cannot be read.
            EvaluationError: see `ImageList`.
        """
        metadata = get_metadata(name)
        png_root, image_root = metadata.panoptic_root, metadata.image_root
        images = [
            ImageEntry(
                record["image_id"],
                os.path.relpath(record["file_name"], image_root),
                png_name(os.path.relpath(record["pan_seg_file_name"], png_root)),
                (record["height"], record["width"]),
            )
            for record in get_records(name)
        ]
        return cls(f"data set {quoted(name)}", images, categories_of(metadata))

    @classmethod
    def of_json(cls, path: str) -> ImageList:
        """The images of a COCO panoptic JSON: the annotated ones or, if there is none, all.

        Only `images` (id, file_name, height, width), `categories` and the file names of
        `annotations` are read. The JSON of a test set, without annotations, is therefore enough.

        Raises:
            DatasetError: no such file, not JSON, or its categories cannot be used.
            EvaluationError: its images cannot be used.
        """
        info = read_json(path)
        categories = read_categories(info, path)
        entries = _checked_images(info.get("images"), path)
        names = _annotated(info.get("annotations"), path)
        if names:
            missing = [i for i in names if i not in entries]
            if missing:
                raise EvaluationError(
                    f"{path}: annotations of images that are not in its images: {listed(missing)}"
                )
            entries = {i: entries[i] for i in names}
        return cls(
            path,
            [
                ImageEntry(
                    i, e["file_name"], png_name(names.get(i, e["file_name"])),
                    (e["height"], e["width"]),
                )
                for i, e in entries.items()
            ],
            categories,
        )  # fmt: skip

    def by_ids(self, ids: Iterable[ImageId], where: str) -> dict[ImageId, ImageEntry]:
        """The image of each id of a results file.

        7 and "7" are the same id if only one of them exists. If not all image ids are
        numbers, a file's ids may also be the images' positions in the data set, counted from 1.

        Args:
            ids: as in the file.
            where: names the file in errors.

        Raises:
            EvaluationError: an id of no image, or numbers that could be ids or positions.
        """
        wanted = set(ids)
        by_text = {str(i): image for i, image in self._by_id.items()}
        direct = {i: self._by_id.get(i) or by_text.get(str(i)) for i in wanted}
        numbered: dict[ImageId, ImageEntry | None] = {}
        # pycocotools requires numbers. For other ids panoptic_ext's evaluator of instances
        # therefore writes the images' positions, see PanopticInstanceEvaluator.
        if not all(isinstance(i, int) for i in self._by_id):
            numbered = {i: self._at_position(i) for i in wanted}
        unknown = [i for i, image in direct.items() if image is None]
        # One file has one kind of id: positions are used only if they explain all its ids.
        by_number = bool(numbered) and None not in numbered.values()
        if by_number and not unknown and direct != numbered:
            raise EvaluationError(
                f"{where}: image ids such as {listed(wanted)} are both ids of {self.where} and"
                " positions in it, as panoptic_ext's own evaluator writes; write the ids as strings"
            )
        if unknown and not by_number:
            raise EvaluationError(
                f"{where}: predictions for {len(unknown)} image ids that {self.where} does not"
                f" have: {listed(unknown)}; its ids are {listed(self._by_id)}. Both must be of the"
                " same images"
            )
        chosen = numbered if unknown else direct
        return {i: image for i, image in chosen.items() if image is not None}

    def by_name(self, name: str) -> ImageEntry | None:
        """The image that a file is named after, whatever its folder and extension; or None.

        Raises:
            EvaluationError: several images match.
        """
        for index in self._names:
            matches = index.find(name)
            if len(matches) > 1:
                raise EvaluationError(
                    f"{name} could belong to {len(matches)} images of {self.where}:"
                    f" {listed(i.file_name for i in matches)}; keep the images' folders"
                )
            if matches:
                return matches[0]
        return None

    def _at_position(self, number: ImageId) -> ImageEntry | None:
        """The image at a position, counted from 1; None if there is none."""
        if isinstance(number, int) and 1 <= number <= len(self.images):
            return self.images[number - 1]
        return None


class _NameIndex:
    """Finds the images that a path is named after: by base name, then by common folders."""

    def __init__(self, named: Iterable[tuple[str, ImageEntry]]):
        self._by_stem: dict[str, list[tuple[list[str], ImageEntry]]] = defaultdict(list)
        for name, image in named:
            parts = _parts(name)
            self._by_stem[parts[-1]].append((parts, image))

    def find(self, name: str) -> list[ImageEntry]:
        """The images with the base name of `name` and most of its last folders in common."""
        name_parts = _parts(name)
        candidates = self._by_stem.get(name_parts[-1], [])
        num_common = [_common_tail(name_parts, parts) for parts, _ in candidates]
        return [
            image
            for (_, image), n in zip(candidates, num_common, strict=True)
            if n == max(num_common, default=0)
        ]


def _checked_images(images: Any, path: str) -> dict[ImageId, dict[str, Any]]:
    """{id: entry} of the JSON's images."""
    if not isinstance(images, list) or not images:
        raise EvaluationError(
            f"{path} has no images; expected a list of objects with id, file_name, height, width"
        )
    for entry in images:
        good = (
            isinstance(entry, dict)
            and isinstance(entry.get("id"), (int, str))
            and safe_name(entry.get("file_name"))
            and all(type(entry.get(k)) is int and entry[k] > 0 for k in ("height", "width"))
        )
        if not good:
            raise EvaluationError(
                f"{path} has {quoted(entry, 120)} in images; expected an id, a file_name that is a"
                " relative path, height and width in pixels"
            )
    entries = {entry["id"]: entry for entry in images}
    if len(entries) < len(images):
        raise EvaluationError(f"{path}: two images have the same id; give each image its own")
    return entries


def _annotated(annotations: Any, path: str) -> dict[ImageId, str]:
    """{image_id: PNG file_name} of the JSON's annotations, if it has any."""
    names = {}
    for annotation in annotations or []:
        good = (
            isinstance(annotation, dict)
            and isinstance(annotation.get("image_id"), (int, str))
            and safe_name(annotation.get("file_name"))
        )
        if not good:
            raise DatasetError(
                f"{path} has {quoted(annotation, 120)} in annotations; expected a panoptic one, "
                "with image_id and the file_name of its PNG, a relative path"
            )
        names[annotation["image_id"]] = annotation["file_name"]
    return names


def _common_tail(one: list[str], other: list[str]) -> int:
    """The number of equal parts at the end of two paths."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _parts(name: str) -> list[str]:
    """The folders and the base name of a path, without its extension."""
    return os.path.splitext(name.replace("\\", "/"))[0].split("/")


def _file_name(image: ImageEntry) -> str:
    return image.file_name


def _png_name(image: ImageEntry) -> str:
    return image.png_name


def _id_name(image: ImageEntry) -> str:
    # `_parts` removes an extension. The dot at the end is an empty one, so that an id that contains
    # a dot stays whole.
    return f"{image.image_id}."
