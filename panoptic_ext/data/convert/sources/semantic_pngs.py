"""Read label PNGs with a class in each pixel, which belong to images of the same name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from panoptic_ext.data.coco.label_png import ExpectedSize, read_class_map
from panoptic_ext.data.convert.image_search import ImageSearch
from panoptic_ext.data.convert.labels import MapSegment, SegmentMap, SourceClass, SourceImage
from panoptic_ext.data.convert.source import class_of_number, map_of_values
from panoptic_ext.errors import DatasetError

__all__ = ["SemanticFolder"]


class SemanticFolder:
    """A folder of grey or palette PNGs, one for each image."""

    def __init__(self, root: str, names: Mapping[int, str], void: frozenset[int]) -> None:
        """
        Args:
            root: the folder.
            names: of classes; others are named by their number.
            void: values that stand for no class.

        Raises:
            DatasetError: there is no such folder.
        """
        if not os.path.isdir(root):
            raise DatasetError(f"there is no folder {root}; correct --semantic")
        self._search = ImageSearch(root)
        self._names, self._void = names, void

    def classes_of(self, image: SourceImage) -> Sequence[SourceClass]:
        """The classes in the PNG of an image."""
        values = np.unique(read_class_map(self._path(image)))
        return [class_of_number(v, self._names) for v in values.tolist() if v not in self._void]

    def map_of(self, image: SourceImage, size: tuple[int, int]) -> SegmentMap:
        """The labels of an image.

        Raises:
            DatasetError: its PNG is missing, damaged or of another size.
        """
        path = self._path(image)
        values = read_class_map(path, size=ExpectedSize(*size, f"image {image.name} is"))
        return map_of_values(values + 1, self._meaning)

    def _meaning(self, value: int) -> MapSegment | None:
        number = value - 1
        if number in self._void:
            return None
        return MapSegment(class_of_number(number, self._names).name, False)

    def _path(self, image: SourceImage) -> str:
        stem = os.path.splitext(image.name)[0]
        found = self._search.of_stem(stem) or self._search.of_stem(os.path.basename(stem))
        if found is None:
            raise DatasetError(
                f"image {image.name} has no PNG in {self._search.root}, expected {stem}.png"
            )
        return self._search.path(found)
