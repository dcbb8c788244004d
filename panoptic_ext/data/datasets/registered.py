"""Look up records, classes and thing ids of registered data sets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from panoptic_ext.data.datasets.builtin import register_builtin
from panoptic_ext.data.datasets.instances import describe_instances, has_instances_alone
from panoptic_ext.data.datasets.metadata import dataset_ids
from panoptic_ext.errors import DatasetError, quoted, shortened, unknown

__all__ = [
    "annotated",
    "check_same_categories",
    "filter_empty",
    "get_metadata",
    "get_records",
    "num_classes",
    "thing_ids",
]


def get_records(name: str) -> list[dict[str, Any]]:
    """Return the records of a registered data set.

    Raises:
        DatasetError: no data set has that name (the message suggests the nearest name), or it
            cannot be read.
    """
    _check_registered(name)
    # Panoptic data sets are read by panoptic_ext, which raises DatasetError itself. Those of
    # instances may be read by Detectron2, whose readers raise various errors.
    if not has_instances_alone(name):
        return DatasetCatalog.get(name)
    try:
        return DatasetCatalog.get(name)
    except DatasetError:
        raise
    except ModuleNotFoundError as error:
        raise DatasetError(
            f"data set {quoted(name)} cannot be read with this Detectron2, which asks for the "
            f"module {quoted(error.name)}: {_how_to_get(error.name or '')}"
        ) from error
    except (OSError, AssertionError, KeyError, ValueError) as error:
        why = shortened(str(error) or type(error).__name__, 200)
        raise DatasetError(
            f"data set {quoted(name)} cannot be read: {why}; "
            "check that its files lie under $DETECTRON2_DATASETS (by default datasets/), as "
            "datasets/README.md lists them"
        ) from error


def get_metadata(name: str) -> Metadata:
    """Return the metadata of a registered data set; raise DatasetError for an unknown name."""
    _check_registered(name)
    return MetadataCatalog.get(name)


def num_classes(name: str) -> int:
    """Return the number K of things and stuff together; reads the JSON if needed."""
    return len(_categories(name))


def thing_ids(name: str) -> tuple[int, ...]:
    """Return the contiguous ids of the things, ascending; reads the JSON if needed."""
    return tuple(i for i, (_, _, isthing) in enumerate(_categories(name)) if isthing)


def check_same_categories(names: Sequence[str]) -> None:
    """Raise DatasetError where data sets used together have different categories."""
    if not names:
        return
    first = _categories(names[0])
    for name in names[1:]:
        other = _categories(name)
        if other == first:
            continue
        text = f"{len(first)} categories in {quoted(names[0])}, {len(other)} in {quoted(name)}"
        for i, (a, b) in enumerate(zip(first, other, strict=False)):
            if a != b:
                text = (
                    f"class {i} is {_describe(a)} in {quoted(names[0])}, "
                    f"{_describe(b)} in {quoted(name)}"
                )
                break
        raise DatasetError(
            f"the data sets {', '.join(map(repr, names))} do not have the same categories: {text}; "
            "use splits of one data set, or give both JSONs the same categories in the same order"
        )


def filter_empty(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records with at least one segment or instance that is no crowd.

    Training uses only these, unless DATALOADER.FILTER_EMPTY_ANNOTATIONS is False.
    """
    return [
        record
        for record in records
        if any(not entry.get("iscrowd", 0) for entry in annotated(record))
    ]


def _how_to_get(module: str) -> str:
    package = {"cityscapesscripts": "cityscapesScripts"}.get(module.split(".")[0], module)
    if module.split(".")[0] == "deeplearning":
        return (
            "it is not public; with Detectron2's main branch take cityscapes_panoptic_train and "
            "_val, or take Detectron2 v0.6"
        )
    return f"install it (pip install {package})"


def annotated(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the segments of a panoptic record or the annotations of an instance record."""
    return record.get("segments_info") or record.get("annotations") or []


def _check_registered(name: str) -> None:
    if name not in DatasetCatalog:
        # Built-in names that an installed Mask2Former registers too are not registered at import.
        register_builtin([name])
    if name not in DatasetCatalog:
        names = list(DatasetCatalog)
        raise DatasetError(
            unknown(
                "data set",
                name,
                names,
                limit=0,
                # The list of names is omitted: Detectron2 alone registers dozens.
                mend=f"{len(names)} others are registered. Give the --config-file that describes "
                f"it under DATASETS.PANOPTIC.{name}, or register it in Python with "
                "panoptic_ext.data.register_panoptic",
            )
        )


def _categories(name: str) -> list[tuple[int, str, bool]]:
    """(dataset_id, name, isthing) of each contiguous id."""
    metadata = get_metadata(name)
    if has_instances_alone(name):
        if metadata.get("thing_classes", None) is None:
            # Detectron2 sets the classes of a COCO JSON in the metadata when it loads the records.
            get_records(name)
        describe_instances(name)
    things = set(getattr(metadata, "thing_dataset_id_to_contiguous_id", {}).values())
    return [
        (d, (metadata.thing_classes if i in things else metadata.stuff_classes)[i], i in things)
        for i, d in enumerate(dataset_ids(metadata))
    ]


def _describe(category: tuple[int, str, bool]) -> str:
    return f"{quoted(category[1])} (id {category[0]}, {'thing' if category[2] else 'stuff'})"
