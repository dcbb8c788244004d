"""The images that copy-paste augmentation takes things from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from copy import copy
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList

from panoptic_ext.data.datasets.registered import get_metadata, thing_ids
from panoptic_ext.errors import ConfigError, DatasetError, unknown

__all__ = ["DonatingMapper", "Donors", "Drawn", "build_donors", "classes_of_things"]

Record = dict[str, Any]


class Drawn(NamedTuple):
    """A donor.

    Attributes:
        record: of the image.
        classes: contiguous ids of the things that may be copied from it.
    """

    record: Record
    classes: Collection[int]


class Donors:
    """Records with things, and which classes each has. It draws from numpy's global generator."""

    def __init__(
        self, records: Sequence[Record], classes: Collection[int], *, by_class: bool = False
    ) -> None:
        """
        Args:
            records: panoptic ones; those without a thing of `classes` are never drawn.
            classes: contiguous ids of the things that may be copied.
            by_class: draw a class first, each with the same chance, then an image with it, of
                which things of this class alone may be copied.
        """
        # Serialised: data workers would copy the memory of each Python object that they look at.
        self._records = DatasetFromList(list(records), copy=False) if records else []
        self._classes = frozenset(classes)
        self._by_class = by_class
        pairs = [
            (index, category)
            for index, record in enumerate(records)
            if "pan_seg_file_name" in record
            for category in sorted({*classes_of_things(record["segments_info"], self._classes)})
            if category >= 0
        ]
        self._pairs = np.array(pairs, np.int64).reshape(-1, 2)  # columns: record, class

    def __len__(self) -> int:
        """Number of images with a thing that may be copied."""
        return len(np.unique(self._pairs[:, 0]))

    def among(self, indices: Collection[int]) -> Donors:
        """The same, of the records with these indices alone."""
        if len(indices) == len(self._records):
            return self
        chosen = copy(self)
        chosen._pairs = self._pairs[np.isin(self._pairs[:, 0], list(indices))]
        return chosen

    def draw(self) -> Drawn | None:
        """A random donor; None if there is none."""
        if len(self._pairs) == 0:
            return None
        if not self._by_class:
            index = np.random.choice(np.unique(self._pairs[:, 0]))
            return Drawn(self._records[index], self._classes)
        category = np.random.choice(np.unique(self._pairs[:, 1]))
        index = np.random.choice(self._pairs[self._pairs[:, 1] == category, 0])
        return Drawn(self._records[index], (int(category),))


class DonatingMapper:
    """A mapper that gets donors with every record."""

    def __init__(self, mapper: Callable[[Record, Donors], Record | None], donors: Donors) -> None:
        """
        Args:
            mapper: (record, donors) -> sample, or None.
            donors: of the data set.
        """
        self._mapper, self._donors = mapper, donors

    def __call__(self, record: Record) -> Record | None:
        """The mapper's sample of a record."""
        return self._mapper(record, self._donors)

    def among(self, indices: Collection[int]) -> DonatingMapper:
        """The same with donors of these indices alone; see `Donors.among`."""
        return DonatingMapper(self._mapper, self._donors.among(indices))


def build_donors(cfg: CfgNode, records: Sequence[Record]) -> Donors | None:
    """The donors among training records as INPUT.COPY_PASTE wants them; None without copy-paste.

    Args:
        cfg: INPUT.COPY_PASTE and DATASETS.TRAIN are read.
        records: of DATASETS.TRAIN.

    Raises:
        ConfigError: INPUT.COPY_PASTE.CLASSES has a name that is no thing's.
        DatasetError: no image has a label map with a thing to copy.
    """
    keys, names = cfg.INPUT.COPY_PASTE, cfg.INPUT.COPY_PASTE.CLASSES
    if keys.PROBABILITY == 0:
        return None
    dataset = cfg.DATASETS.TRAIN[0]
    things = _thing_names(dataset)
    for name in names:
        if name not in things:
            raise ConfigError(
                unknown("thing of INPUT.COPY_PASTE.CLASSES", name, list(things), limit=20)
            )
    classes = [things[name] for name in names or things]
    donors = Donors(records, classes, by_class=keys.DRAW_BY == "class")
    if len(donors) == 0:
        wanted = ", ".join(names) or "any class"
        raise DatasetError(
            f"INPUT.COPY_PASTE finds no thing of {wanted} in {len(records)} images of {dataset}: "
            "it copies things that are no crowd, from images with a label map; set "
            "INPUT.COPY_PASTE.PROBABILITY 0"
        )
    return donors


def _thing_names(dataset: str) -> dict[str, int]:
    names = get_metadata(dataset).thing_classes
    return {names[i]: i for i in thing_ids(dataset)}


def classes_of_things(
    segments: Sequence[dict[str, Any]], classes: Collection[int] | None = None
) -> list[int]:
    """The class of each segment that is a thing and no crowd, -1 of the others.

    Args:
        segments: segments_info entries with contiguous ids.
        classes: contiguous ids; None: all. Things of other classes are -1, too.
    """
    return [
        int(s["category_id"])
        if s["isthing"] and not s["iscrowd"] and (classes is None or s["category_id"] in classes)
        else -1
        for s in segments
    ]
