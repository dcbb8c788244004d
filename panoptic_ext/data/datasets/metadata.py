"""Sources of panoptic data sets, and metadata that reads the JSON at its first use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.data import Metadata

from panoptic_ext.data.coco.categories import Category
from panoptic_ext.data.coco.json_checks import read_categories
from panoptic_ext.data.datasets.file_search import expand, search
from panoptic_ext.data.datasets.parsed import parsed_content
from panoptic_ext.errors import DatasetError, quoted

__all__ = [
    "ClassesOfModel",
    "PanopticMetadata",
    "PanopticSource",
    "categories_of",
    "class_attributes",
    "dataset_ids",
]


@dataclass(frozen=True)
class PanopticSource:
    """The files and the encoding of a data set. Nothing is read until a method is called.

    Attributes:
        json, image_root, png_root: paths; relative ones are searched in `search_path`.
        encoding: encoding of the label PNGs, see `panoptic_ext.data.coco.label_png`.
        label_divisor: divisor of the "divisor" encoding.
        ignore_label: value of void pixels in `sem_seg`; outside 0..K-1.
        evaluator_type: `evaluator_type` of Detectron2's metadata.
        classes: categories that replace the JSON's; None reads them from the JSON.
        search_path: folders for `file_search.search`; None leaves relative paths unchanged.
    """

    json: str
    image_root: str
    png_root: str
    encoding: str = "rgb"
    label_divisor: int = 1000
    ignore_label: int = 255
    evaluator_type: str = "coco_panoptic_seg"
    classes: tuple[Category, ...] | None = None
    search_path: tuple[str, ...] | None = None

    def locate(self) -> tuple[str, str, str]:
        """Return the paths of the JSON, the image root and the PNG root."""
        paths = {
            "panoptic JSON": self.json,
            "image root": self.image_root,
            "PNG root": self.png_root,
        }
        if self.search_path is None:
            json, image_root, png_root = map(expand, paths.values())
        else:
            json, image_root, png_root = (
                search(path, self.search_path, what=what) for what, path in paths.items()
            )
        return json, image_root, png_root

    def image_name(self, entry: dict[str, Any]) -> str:
        """Return the image file of an entry of `images`, relative to the image root."""
        return str(entry["file_name"])


class ClassesOfModel(Metadata):
    """Metadata of a data set that is not registered: a model that was trained on it names it.

    A data set that is registered under the name takes its place.
    """


class PanopticMetadata(Metadata):
    """Metadata whose class lists and paths are determined at their first access.

    Otherwise it equals Detectron2's Metadata: values that were determined are plain attributes.
    """

    __slots__ = ("_source",)

    _PATHS = ("panoptic_json", "image_root", "panoptic_root")
    _CLASSES = (
        "thing_classes",
        "stuff_classes",
        "thing_colors",
        "stuff_colors",
        "thing_dataset_id_to_contiguous_id",
        "stuff_dataset_id_to_contiguous_id",
        "isthing",
    )

    def __init__(self, name: str, source: PanopticSource):
        super().__init__(
            name=name,
            label_divisor=source.label_divisor,
            ignore_label=source.ignore_label,
            evaluator_type=source.evaluator_type,
            panoptic_encoding=source.encoding,
        )
        # `_source` is a slot, so that it is not among the values that `as_dict` returns.
        object.__setattr__(self, "_source", source)

    @property
    def source(self) -> PanopticSource:
        """The registered source."""
        return self._source

    def __getattr__(self, key: str) -> Any:
        # Python calls this only for attributes that are not set yet.
        if key in PanopticMetadata._PATHS:
            self.__dict__.update(zip(self._PATHS, self._source.locate(), strict=True))
        elif key in PanopticMetadata._CLASSES:
            # With registered classes, names and colours are available without the data set's files.
            json = "" if self._source.classes else self.panoptic_json
            categories = self._source.classes or read_categories(parsed_content(json), json)
            self.fill(categories)
        else:
            return super().__getattr__(key)
        return self.__dict__[key]

    def __setattr__(self, key: str, value: Any) -> None:
        if key == "_source":
            raise AttributeError("_source is set by registration")
        super().__setattr__(key, value)

    def fill(self, categories: Sequence[Category]) -> None:
        """Set class names, colours, kinds and tables of ids from the categories."""
        if 0 <= self.ignore_label < len(categories):
            raise DatasetError(
                f"data set {quoted(self.name)}: ignore_label {self.ignore_label} lies inside the "
                f"class range 0..{len(categories) - 1}; register it with ignore_label="
                f"{max(255, len(categories))}"
            )
        self.__dict__.update(class_attributes(categories))

    def as_dict(self) -> dict[str, Any]:
        """Return all metadata; paths and class lists that are not set yet are determined first."""
        # The first access to one key of a group sets the whole group.
        for key in (self._PATHS[0], self._CLASSES[0]):
            getattr(self, key)
        return super().as_dict()

    def __reduce__(self) -> tuple:
        return _restore, (self.name, self._source, dict(self.__dict__))


def class_attributes(categories: Sequence[Category]) -> dict[str, Any]:
    """The metadata that describe classes: names, colours, kinds and tables of ids.

    Args:
        categories: in the order of their contiguous ids.
    """
    # Things and stuff share one space of contiguous ids, so both lists hold all K classes and a
    # contiguous id is the index into either.
    names = [c.name for c in categories]
    colors = [list(c.color) for c in categories]
    pairs = list(enumerate(categories))
    return {
        "thing_classes": names,
        "stuff_classes": list(names),
        "thing_colors": colors,
        "stuff_colors": [list(c) for c in colors],
        "thing_dataset_id_to_contiguous_id": {c.id: i for i, c in pairs if c.isthing},
        "stuff_dataset_id_to_contiguous_id": {c.id: i for i, c in pairs if not c.isthing},
        "isthing": tuple(c.isthing for c in categories),
    }


def dataset_ids(metadata: Any) -> tuple[int, ...]:
    """Return the dataset id of each contiguous id, in the order of the contiguous ids.

    Args:
        metadata: metadata of a data set of panoptic_ext or of Detectron2.

    Raises:
        DatasetError: things and stuff do not share one space of contiguous ids, 0..K-1.
    """
    things = getattr(metadata, "thing_dataset_id_to_contiguous_id", {})
    stuff = getattr(metadata, "stuff_dataset_id_to_contiguous_id", {})
    by_contiguous = {
        contiguous: dataset_id
        for table in (stuff, things)
        for dataset_id, contiguous in table.items()
    }
    if not by_contiguous or sorted(by_contiguous) != list(range(len(by_contiguous))):
        raise DatasetError(
            f"data set {quoted(getattr(metadata, 'name', ''))} has no contiguous category ids; "
            "register it with panoptic_ext.data.register_panoptic"
        )
    return tuple(by_contiguous[i] for i in range(len(by_contiguous)))


def categories_of(metadata: Any) -> tuple[Category, ...]:
    """Return the categories in the order of their contiguous ids; those without colour are black.

    Args:
        metadata: metadata with stuff_classes (the names of all K), isthing and the tables of ids.

    Raises:
        DatasetError: as `dataset_ids`.
    """
    ids = dataset_ids(metadata)
    colors = getattr(metadata, "stuff_colors", None) or [(0, 0, 0)] * len(ids)
    things = set(getattr(metadata, "thing_dataset_id_to_contiguous_id", {}).values())
    return tuple(
        Category(dataset_id, metadata.stuff_classes[i], i in things, tuple(colors[i]))
        for i, dataset_id in enumerate(ids)
    )


def _restore(name: str, source: PanopticSource, values: dict[str, Any]) -> PanopticMetadata:
    metadata = PanopticMetadata(name, source)
    metadata.__dict__.update(values)
    return metadata
