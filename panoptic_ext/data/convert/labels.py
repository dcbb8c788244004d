"""The form between all formats: an image, and its labels as a map, as objects, or both.

Shapes: H x W is the size that the labels are of; a map is (H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from panoptic_ext.data.coco.json_file import ImageId
from panoptic_ext.data.convert.masks import Mask

__all__ = [
    "FRAMES",
    "LabelledObject",
    "Labels",
    "MapSegment",
    "SegmentMap",
    "SourceClass",
    "SourceImage",
]

FRAMES = ("upright", "stored")
"""Which pixels labels describe: those of the image turned by its EXIF tag, or those in its file."""


@dataclass(frozen=True)
class SourceClass:
    """A class that a format lists; None is what it does not tell."""

    name: str
    id: int | None = None
    isthing: bool | None = None
    color: tuple[int, int, int] | None = None


@dataclass(frozen=True, eq=False)
class SourceImage:
    """An image of a source; its labels are read apart.

    Attributes:
        name: file name in the result, with "/" between its parts and an extension.
        path: of the image file.
        labels: what the source finds the labels by, such as the path of a JSON.
        id: of the image in the source; None numbers the images from 1 on.
        embedded: gives the content of the image file where there is none at `path`.
    """

    name: str
    path: str
    labels: object = None
    id: ImageId | None = None
    embedded: Callable[[], bytes] | None = None


@dataclass(frozen=True)
class LabelledObject:
    """One object, or a part of one, or a piece of stuff.

    Attributes:
        class_name: its class.
        mask: what it covers.
        where: names it in messages, such as "shape 3".
        group: parts of one class and one group are one object; None is an object of its own.
        is_crowd: a group of things that nobody separated.
    """

    class_name: str
    mask: Mask
    where: str
    group: Hashable = None
    is_crowd: bool = False


class MapSegment(NamedTuple):
    """What an id of a map means. Without `is_instance` it is all of a class in the image."""

    class_name: str
    is_instance: bool
    is_crowd: bool = False


@dataclass(frozen=True)
class SegmentMap:
    """A label map.

    Attributes:
        ids: (H, W) integers; 0 is void.
        segments: what each id means; it may list ids that do not occur.
    """

    ids: np.ndarray
    segments: Mapping[int, MapSegment]


@dataclass(frozen=True)
class Labels:
    """The labels of one image.

    Attributes:
        size: (H, W) that they are of.
        objects: in the order in which the file lists them.
        under: a map that lies behind all objects.
        frame: one of FRAMES; None where the format does not tell.
    """

    size: tuple[int, int]
    objects: Sequence[LabelledObject] = field(default=())
    under: SegmentMap | None = None
    frame: str | None = None
