"""Register data sets from a config, so that a data set needs no Python."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from panoptic_ext.data.coco.label_png import check_encoding
from panoptic_ext.data.datasets.builtin import register_builtin, warn_of_others
from panoptic_ext.data.datasets.instances import (
    InstanceMetadata,
    InstanceSource,
    describe_instances,
    register_instance_source,
)
from panoptic_ext.data.datasets.metadata import PanopticMetadata, PanopticSource
from panoptic_ext.data.datasets.panoptic import register_source
from panoptic_ext.data.datasets.same_source import source_differences
from panoptic_ext.data.datasets.shapes import ShapesParams, register_shapes
from panoptic_ext.errors import ConfigError, DatasetError, check_known, quoted, shortened

__all__ = ["register_from_config"]

_REQUIRED = {"JSON": "json", "IMAGE_ROOT": "image_root", "PNG_ROOT": "png_root"}
_INSTANCES_REQUIRED = {"JSON": "json", "IMAGE_ROOT": "image_root"}
_OPTIONAL = {
    "ENCODING": "encoding",
    "LABEL_DIVISOR": "label_divisor",
    "IGNORE_LABEL": "ignore_label",
    "EVALUATOR_TYPE": "evaluator_type",
}


def register_from_config(cfg: CfgNode, *, trained_on: Metadata | None = None) -> None:
    """Register the blocks of DATASETS.PANOPTIC, .INSTANCES and .SHAPES.

    No file is read; a missing path is an error only when the data set is used. A second call with
    the same config changes nothing.

    Args:
        cfg: the config.
        trained_on: metadata with the classes of a model that only predicts. A name that is
            registered with other files then keeps its registration. Its classes, if they can be
            read, must be these.

    Raises:
        ConfigError: a block has an unknown key or lacks one, or a value is of the wrong kind.
        DatasetError: another data set is registered under a name, or it has other classes than
            `trained_on`.
    """
    # Only built-in data sets that the config names and does not describe: a block of the same name
    # replaces the built-in data set.
    names = [n for n in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) if isinstance(n, str)]
    described = (*cfg.DATASETS.PANOPTIC, *cfg.DATASETS.INSTANCES)
    register_builtin([name for name in names if name not in described])
    for name, block in cfg.DATASETS.PANOPTIC.items():
        source = _source_from_block(name, block, tuple(cfg.DATASETS.SEARCH_PATH))
        if not _stays(name, source, trained_on):
            register_source(name, source)
    for name, block in cfg.DATASETS.INSTANCES.items():
        instances = _instances_from_block(name, block, tuple(cfg.DATASETS.SEARCH_PATH))
        if not _stays(name, instances, trained_on):
            register_instance_source(name, instances)
    register_shapes(_shapes_params(cfg.DATASETS.SHAPES))
    warn_of_others([name for name in names if name in DatasetCatalog and name not in described])
    for name in names:
        if name in DatasetCatalog:
            describe_instances(name)


def _stays(name: str, source: Any, trained_on: Metadata | None) -> bool:
    """Whether `name` keeps its present registration; see `trained_on` of `register_from_config`."""
    if trained_on is None or name not in DatasetCatalog:
        return False
    registered = MetadataCatalog.get(name)
    if not isinstance(registered, (PanopticMetadata, InstanceMetadata)):
        return False
    if not source_differences(registered.source, source):
        return False
    try:
        classes = _classes(registered)
    except DatasetError:
        # The files of the present registration are missing, too, so its classes cannot be compared.
        return True
    if classes == _classes(trained_on):
        return True
    registered_names, trained_names = (
        ", ".join(str(c[0]) for c in row) for row in (classes, _classes(trained_on))
    )
    raise DatasetError(
        f"data set {quoted(name)} is registered with other classes than the model was trained on: "
        f"{shortened(registered_names, 200)} there, {shortened(trained_names, 200)} in the run's "
        "metadata.json (or other ids or kinds of them). Register it under another name, or remove "
        "it from DatasetCatalog and MetadataCatalog"
    )


def _classes(metadata: Metadata) -> list[tuple[str, bool, int | None]]:
    """(name, isthing, dataset_id) of each class, in their order."""
    things = metadata.get("thing_dataset_id_to_contiguous_id", {})
    ids = {**metadata.get("stuff_dataset_id_to_contiguous_id", {}), **things}
    dataset_ids = {contiguous: dataset_id for dataset_id, contiguous in ids.items()}
    names = enumerate(zip(metadata.thing_classes, metadata.isthing, strict=True))
    return [(name, bool(isthing), dataset_ids.get(i)) for i, (name, isthing) in names]


def _shapes_params(shapes: CfgNode) -> ShapesParams:
    where = "DATASETS.SHAPES"
    size = shapes.IMAGE_SIZE
    if not isinstance(size, (list, tuple)) or len(size) != 2:
        raise ConfigError(
            f"{where}.IMAGE_SIZE is {quoted(size)}, expected [height, width] in pixels"
        )
    height, width = (_integer(f"{where}.IMAGE_SIZE", value) for value in size)
    cache = _text(shapes.CACHE)
    if cache is None:
        raise ConfigError(f"{where}.CACHE is {quoted(shapes.CACHE)}, expected a folder or ''")
    return ShapesParams(
        height=height,
        width=width,
        num_train=_integer(f"{where}.NUM_TRAIN", shapes.NUM_TRAIN),
        num_val=_integer(f"{where}.NUM_VAL", shapes.NUM_VAL),
        max_objects=_integer(f"{where}.MAX_OBJECTS", shapes.MAX_OBJECTS),
        seed=_integer(f"{where}.SEED", shapes.SEED),
        cache=cache,
    )


def _integer(key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{key} is {quoted(value)}, expected a whole number")
    return value


def _text(value: object) -> str | None:
    """Return a path or name as text, else None. yacs turns even a quoted '2017' into a number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else None


def _source_from_block(name: str, block: object, search_path: tuple[str, ...]) -> PanopticSource:
    where = f"DATASETS.PANOPTIC.{name}"
    values = _read_block(where, block, _REQUIRED, _OPTIONAL)
    assert isinstance(block, dict)
    check_encoding(values.get("encoding", "rgb"))
    for key in ("LABEL_DIVISOR", "IGNORE_LABEL"):
        _integer(f"{where}.{key}", block.get(key, 1))
    if block.get("LABEL_DIVISOR", 1) < 1:
        raise ConfigError(f"{where}.LABEL_DIVISOR is {block['LABEL_DIVISOR']}, expected 1 or more")
    return PanopticSource(**values, search_path=search_path)


def _instances_from_block(name: str, block: object, search_path: tuple[str, ...]) -> InstanceSource:
    values = _read_block(f"DATASETS.INSTANCES.{name}", block, _INSTANCES_REQUIRED, {})
    return InstanceSource(**values, search_path=search_path)


def _read_block(
    where: str, block: object, required: dict[str, str], optional: dict[str, str]
) -> dict[str, Any]:
    """Return the arguments of a source from its block; both tables map keys to arguments."""
    known = {**required, **optional}
    if not isinstance(block, dict):
        raise ConfigError(
            f"{where} is {quoted(block)}, expected a block with the keys {list(known)}"
        )
    for key in block:
        check_known(f"key of {where}", key, known)
    values: dict[str, Any] = {known[key]: block[key] for key in optional if key in block}
    for key, argument in required.items():
        values[argument] = _text(block.get(key))
        if not values[argument]:
            raise ConfigError(
                f"{where}.{key} is {quoted(block.get(key))}, expected a path; the block needs "
                f"{', '.join(required)}"
            )
    return values
