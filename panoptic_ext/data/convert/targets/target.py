"""What every format that can be written has: `Target`, the base of the classes beside it."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from panoptic_ext.data.coco.categories import Category
from panoptic_ext.data.coco.json_file import ImageId
from panoptic_ext.data.convert.resolve import Group

__all__ = ["ResultPlace", "Target", "WrittenImage"]


@dataclass(frozen=True)
class WrittenImage:
    """An image of the result.

    Attributes:
        id: in the JSON.
        file_name: of the image, relative to the image root, with "/" between its parts.
        stem: the same without extension, unless another image has the same then.
        size: (H, W) upright.
    """

    id: ImageId
    file_name: str
    stem: str
    size: tuple[int, int]

    def entry(self) -> dict[str, Any]:
        """The image's entry in `images` of a COCO JSON."""
        height, width = self.size
        return {"id": self.id, "file_name": self.file_name, "height": height, "width": width}


class Target(ABC):
    """A format to write.

    `add` runs in threads; `close` gets what it returned, in the order of the images.

    Attributes:
        name: of the format, as in `--to`.
        description: a line about it.
        entries: names of the files and folders that it writes into the folder of the result.
        image_folder: where the images are, relative to the folder of the result.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    entries: ClassVar[tuple[str, ...]]
    image_folder: ClassVar[str] = "images"

    def __init__(self, folder: str, classes: Sequence[Category], *, with_stuff: bool) -> None:
        """
        Args:
            folder: of the result.
            classes: of the result.
            with_stuff: formats of objects alone write stuff too.
        """
        self.folder, self.classes, self.with_stuff = folder, tuple(classes), with_stuff
        self._left_out = 0
        self._lock = threading.Lock()

    @abstractmethod
    def add(self, image: WrittenImage, ids: np.ndarray, groups: Sequence[Group]) -> Any:
        """Write the labels of one image.

        Args:
            image: the image.
            ids: (H, W) int32 segment ids, 0 void.
            groups: the segments.

        Raises:
            DatasetError: the format cannot hold them.
            OSError: they cannot be written.
        """

    @abstractmethod
    def close(self, added: Sequence[tuple[WrittenImage, Any]], place: ResultPlace) -> list[str]:
        """Write what all images share.

        Args:
            added: each image with what `add` returned.
            place: where the result will lie.

        Returns:
            Lines for the report: what the format could not hold.
        """

    def written(self, groups: Sequence[Group]) -> list[Group]:
        """The groups that a format of objects writes: things, and stuff if that is wanted."""
        kept = [group for group in groups if self.with_stuff or group.category.isthing]
        with self._lock:
            self._left_out += len(groups) - len(kept)
        return kept

    def written_classes(self) -> list[Category]:
        """The classes that a format of objects writes."""
        return [category for category in self.classes if self.with_stuff or category.isthing]

    def stuff_note(self) -> list[str]:
        """The line about stuff that `written` left out."""
        if not self._left_out:
            return []
        return [f"{self._left_out} segments of stuff were left out; --with-stuff writes them"]

    def path(self, *parts: str) -> str:
        """A path in the folder of the result; parts may contain "/"."""
        return os.path.join(self.folder, *(p for part in parts for p in part.split("/")))


@dataclass(frozen=True)
class ResultPlace:
    """Where a result will lie once it is whole.

    Attributes:
        folder: absolute path.
        image_root: absolute path of the images.
        name: of the data set.
    """

    folder: str
    image_root: str
    name: str
