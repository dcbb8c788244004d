"""Write PNGs of numbers: the class of each pixel, or its class and its instance."""

from __future__ import annotations

import io
import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from panoptic_ext.atomic import write_file
from panoptic_ext.data.coco.categories import Category, category_entries
from panoptic_ext.data.convert.resolve import Group
from panoptic_ext.data.convert.targets.target import ResultPlace, Target, WrittenImage
from panoptic_ext.errors import DatasetError

__all__ = ["SemanticPngs", "TwoChannelPngsTarget"]

_MOST = 255  # in a channel
_MOST_INSTANCES = (1 << 16) - 1


class _LabelPngs(Target):
    """PNGs in a folder, and classes.json, which `--classes` reads again."""

    folder_name: ClassVar[str]

    def close(self, added: Sequence[tuple[WrittenImage, Any]], place: ResultPlace) -> list[str]:
        numbers = self.numbers()
        classes = [category._replace(id=numbers[category.id]) for category in self.classes]
        text = json.dumps(category_entries(classes), ensure_ascii=False, indent=1)
        write_file(self.path("classes.json"), text.encode(), error=None)
        return []

    @abstractmethod
    def numbers(self) -> dict[int, int]:
        """{dataset id: number in the PNGs}."""

    def write(self, image: WrittenImage, pixels: np.ndarray) -> None:
        """Write the PNG of an image."""
        with io.BytesIO() as stream:
            Image.fromarray(pixels).save(stream, format="PNG", compress_level=1)
            path = self.path(self.folder_name, image.stem + ".png")
            write_file(path, stream.getvalue(), durable=False, error=None)


class SemanticPngs(_LabelPngs):
    """Grey PNGs: class 0, 1, ... in the order of classes.json; void is 255, or 65535 of 16 bits."""

    name = "semantic"
    description = "grey PNGs with the number of each pixel's class, and classes.json"
    entries = ("semantic", "classes.json", "images")
    folder_name = "semantic"

    def __init__(self, folder: str, classes: Sequence[Category], *, with_stuff: bool) -> None:
        super().__init__(folder, classes, with_stuff=with_stuff)
        self._type = np.uint8 if len(classes) <= _MOST else np.uint16

    def numbers(self) -> dict[int, int]:
        return {category.id: number for number, category in enumerate(self.classes)}

    def add(self, image: WrittenImage, ids: np.ndarray, groups: Sequence[Group]) -> None:
        numbers = self.numbers()
        void = int(np.iinfo(self._type).max)
        self.write(image, _mapped(ids, groups, [numbers[g.category.id] for g in groups], void,
                                  self._type))  # fmt: skip

    def close(self, added: Sequence[tuple[WrittenImage, Any]], place: ResultPlace) -> list[str]:
        void = int(np.iinfo(self._type).max)
        return [
            *super().close(added, place),
            f"semantic PNGs hold no instances; void is {void}, the other numbers are the ids of "
            "classes.json",
        ]


class TwoChannelPngsTarget(_LabelPngs):
    """RGB PNGs: R is the class, G + 256 B the instance; void is 0, 0, 0.

    Stuff and crowds have the instance 0, so that all crowds of one class are one.
    """

    name = "two-channel"
    description = "RGB PNGs: class in R, instance in G + 256 B, and classes.json"
    entries = ("labels", "classes.json", "images")
    folder_name = "labels"

    def __init__(self, folder: str, classes: Sequence[Category], *, with_stuff: bool) -> None:
        super().__init__(folder, classes, with_stuff=with_stuff)
        if len(classes) > _MOST:
            raise DatasetError(
                f"two-channel PNGs hold {_MOST} classes, not {len(classes)}; leave some out "
                "(--leave-out) or choose another format (--to)"
            )

    def numbers(self) -> dict[int, int]:
        if all(0 < category.id <= _MOST for category in self.classes):
            return {category.id: category.id for category in self.classes}
        return {category.id: number for number, category in enumerate(self.classes, 1)}

    def add(self, image: WrittenImage, ids: np.ndarray, groups: Sequence[Group]) -> int:
        numbers = self.numbers()
        counts: Counter[int] = Counter()
        crowds: Counter[int] = Counter()
        instances = []
        for group in groups:
            category = group.category
            is_instance = category.isthing and not group.is_crowd
            counts[category.id] += is_instance
            crowds[category.id] += group.is_crowd
            instances.append(counts[category.id] if is_instance else 0)
        if max(instances, default=0) > _MOST_INSTANCES:
            raise DatasetError(f"it has more than {_MOST_INSTANCES} objects of one class")
        values = [numbers[g.category.id] for g in groups]
        pixels = np.zeros((*ids.shape, 3), np.uint8)
        pixels[..., 0] = _mapped(ids, groups, values, 0, np.uint8)
        instance_map = _mapped(ids, groups, instances, 0, np.uint16)
        pixels[..., 1], pixels[..., 2] = instance_map & 255, instance_map >> 8
        self.write(image, pixels)
        return sum(count - 1 for count in crowds.values() if count)

    def close(self, added: Sequence[tuple[WrittenImage, Any]], place: ResultPlace) -> list[str]:
        merged = sum(count for _, count in added)
        notes = super().close(added, place)
        if merged:
            notes.append(f"{merged} crowds were merged with another one of their class and image")
        return notes


def _mapped(
    ids: np.ndarray, groups: Sequence[Group], values: Sequence[int], void: int, dtype: type
) -> np.ndarray:
    """(H, W): the value of each pixel's group."""
    known = np.array([0, *(group.id for group in groups)])
    table = np.array([void, *values], dtype)
    order = np.argsort(known)
    return table[order[np.searchsorted(known[order], ids)]]
