"""What every format that can be read has: `Source`, the base of the classes in `sources/`."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from panoptic_ext.data.convert.images import ImageHeader
from panoptic_ext.data.convert.labels import (
    Labels,
    MapSegment,
    SegmentMap,
    SourceClass,
    SourceImage,
)

__all__ = ["Source", "SourceInputs", "class_of_number", "map_of_values"]


@dataclass(frozen=True)
class SourceInputs:
    """Where the labels of a source are, and what its files do not tell.

    Attributes:
        path: file or folder of the labels.
        image_root: folder of the images; None leaves it to the source.
        png_root: folder of label PNGs that belong to a JSON; None leaves it to the source.
        semantic: folder of PNGs with a class in each pixel, which lie behind the objects.
        divisor: of PNGs that hold class and instance in one number.
        names: names of the classes that files know by number alone.
        void_values: numbers of PNGs that stand for no class.
    """

    path: str
    image_root: str | None = None
    png_root: str | None = None
    semantic: str | None = None
    divisor: int = 1000
    names: Mapping[int, str] = field(default_factory=dict)
    void_values: frozenset[int] = frozenset({0})


class Source(ABC):
    """Labels in one format. One object reads one folder or file; its methods run in threads.

    To add a format, write a subclass and list it in `panoptic_ext.data.convert.sources`.

    Attributes:
        name: of the format, as in `--from`.
        description: a line about it.
        example: the arguments of a command that converts it.
        overlap: which object is in front where two overlap and the user does not say: "order" or
            "area", see `panoptic_ext.data.convert.resolve`.
        first_in_front: with "order", the first object of a file is in front; else the last.
        options: names of the `SourceInputs` that it reads, beside path, image_root and names.
        lists_all_classes: `classes` has every class that labels may have. Otherwise the labels of
            all images are read twice, first to find their classes.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    example: ClassVar[str]
    overlap: ClassVar[str] = "order"
    first_in_front: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ()
    lists_all_classes: bool = False

    def __init__(self, inputs: SourceInputs) -> None:
        """Read what all images share, such as a JSON; nothing that each image has of its own.

        Raises:
            DatasetError: it is not in this format.
        """
        self.inputs = inputs
        self._lock = threading.Lock()
        self._ignored: Counter[str] = Counter()

    @classmethod
    @abstractmethod
    def recognises(cls, path: str) -> bool:
        """Whether a file or folder looks like this format; cheap, and never an error."""

    @abstractmethod
    def images(self) -> Sequence[SourceImage]:
        """The annotated images.

        Raises:
            DatasetError: there is none.
        """

    def unannotated(self) -> Sequence[str]:
        """Names of images without any annotation, which the result leaves out."""
        return ()

    def classes(self) -> Sequence[SourceClass]:
        """The classes that the format lists, in their order."""
        return ()

    def classes_of(self, image: SourceImage) -> Sequence[SourceClass]:
        """The classes in the labels of one image; called unless `lists_all_classes`.

        Raises:
            DatasetError: the labels cannot be read.
        """
        return ()

    def notes(self) -> list[str]:
        """Lines for the report, once all labels have been read."""
        with self._lock:
            return [f"ignored: {count} {what}" for what, count in sorted(self._ignored.items())]

    def ignore(self, what: str, count: int = 1) -> None:
        """Count labels that have no place in the result, for `notes`; for use in `labels`.

        Args:
            what: names them in the plural, such as "shapes of the type line, which have no area".
            count: how many there are.
        """
        with self._lock:
            self._ignored[what] += count

    @abstractmethod
    def labels(self, image: SourceImage, header: ImageHeader) -> Labels:
        """Read the labels of one image.

        Args:
            image: one of `images`.
            header: size and orientation of the image file.

        Raises:
            DatasetError: they cannot be read; names file and object, and how to mend it.
        """


def map_of_values(values: np.ndarray, meaning: Callable[[int], MapSegment | None]) -> SegmentMap:
    """The label map of a PNG.

    Args:
        values: (H, W) integers of 0 or more.
        meaning: what a value means; None for void.
    """
    segments = {value: meaning(value) for value in np.unique(values).tolist()}
    # 0 is void in a SegmentMap, and may be a class here.
    shift = int(segments.get(0) is not None)
    ids = values + shift
    for value, segment in segments.items():
        if segment is None:
            ids[values == value] = 0
    return SegmentMap(ids, {v + shift: s for v, s in segments.items() if s is not None})


def class_of_number(number: int, names: Mapping[int, str]) -> SourceClass:
    """The class that files know by this number; it has the user's name, or "class_7"."""
    return SourceClass(names.get(number, f"class_{number}"), number)
