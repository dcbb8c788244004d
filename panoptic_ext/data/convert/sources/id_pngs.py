"""Read grey PNGs whose values hold class and instance in one number."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from PIL import Image

from panoptic_ext.data.coco.label_png import read_class_map
from panoptic_ext.data.convert.images import ImageHeader
from panoptic_ext.data.convert.labels import Labels, MapSegment, SourceClass, SourceImage
from panoptic_ext.data.convert.source import SourceInputs, class_of_number, map_of_values
from panoptic_ext.data.convert.sources.label_folder import LabelFolderSource
from panoptic_ext.errors import DatasetError
from panoptic_ext.regular_files import READ_ERRORS

__all__ = ["ClassInstancePngs", "InstanceClassPngs"]


class _IdPngs(LabelFolderSource):
    """PNGs of 8 or 16 bits, each with the name of its image."""

    options = ("divisor", "void_values")
    modes: ClassVar[tuple[str, ...]] = ("I", "I;16")

    def __init__(self, inputs: SourceInputs) -> None:
        if inputs.divisor < 1:
            raise DatasetError(f"--divisor is {inputs.divisor}, expected 1 or more")
        super().__init__(inputs)

    @classmethod
    def recognises(cls, path: str) -> bool:
        return first_mode(path) in cls.modes

    def classes_of(self, image: SourceImage) -> Sequence[SourceClass]:
        values = np.unique(read_class_map(self._folder.path(image)))
        numbers = sorted({self._split(value)[0] for value in values.tolist()})
        names = self.inputs.names
        return [class_of_number(n, names) for n in numbers if n not in self.inputs.void_values]

    def labels(self, image: SourceImage, header: ImageHeader) -> Labels:
        values = read_class_map(self._folder.path(image), size=self._folder.size(image, header))
        return Labels(
            (values.shape[0], values.shape[1]), under=map_of_values(values, self._meaning)
        )

    def _meaning(self, value: int) -> MapSegment | None:
        number, instance = self._split(value)
        if number in self.inputs.void_values:
            return None
        name = class_of_number(number, self.inputs.names).name
        return MapSegment(name, instance is not None)

    @abstractmethod
    def _split(self, value: int) -> tuple[int, int | None]:
        """Class and instance of a value; None is all of the class."""


class InstanceClassPngs(_IdPngs):
    """instance * divisor + class; instance 0 is all of the class."""

    name = "instance-class"
    description = "grey PNGs with instance * 1000 + class (--divisor); instance 0 is no instance"
    example = "labels --image-root images --from instance-class --classes classes.txt"

    def _split(self, value: int) -> tuple[int, int | None]:
        instance, number = divmod(value, self.inputs.divisor)
        return number, instance or None


class ClassInstancePngs(_IdPngs):
    """class * divisor + instance; values below the divisor are whole classes."""

    name = "class-instance"
    description = "grey PNGs with class * 1000 + instance (--divisor); below it, classes as a whole"
    example = "instanceIds --image-root images --from class-instance --classes classes.txt"

    def _split(self, value: int) -> tuple[int, int | None]:
        if value < self.inputs.divisor:
            return value, None
        return divmod(value, self.inputs.divisor)


def first_mode(folder: str) -> str:
    """Pillow's mode of the first PNG of a folder; "" where there is none that can be read."""
    if not os.path.isdir(folder):
        return ""
    names = sorted(n for n in os.listdir(folder) if n.lower().endswith(".png"))
    for name in names[:1]:
        try:
            with Image.open(os.path.join(folder, name)) as image:
                return image.mode
        except READ_ERRORS:
            return ""
    return ""
