"""Registration from a config, so that a data set needs no Python."""

from __future__ import annotations

from detectron2.config import CfgNode

from panoptic_ext.data.datasets.builtin import register_builtin
from panoptic_ext.data.datasets.metadata import PanopticSource
from panoptic_ext.data.datasets.panoptic import register_source
from panoptic_ext.data.datasets.shapes import ShapesParams, register_shapes
from panoptic_ext.data.id_map import check_encoding
from panoptic_ext.errors import ConfigError, nearest

__all__ = ["register_from_config"]

_REQUIRED = {"JSON": "json", "IMAGE_ROOT": "image_root", "PNG_ROOT": "png_root"}
_OPTIONAL = {
    "ENCODING": "encoding",
    "LABEL_DIVISOR": "label_divisor",
    "IGNORE_LABEL": "ignore_label",
    "EVALUATOR_TYPE": "evaluator_type",
}


def register_from_config(cfg: CfgNode) -> None:
    """Register every block of DATASETS.PANOPTIC and shapes with DATASETS.SHAPES.

    Nothing is read and no file is looked for: a path that does not exist is an error when the
    data set is used. Calling it again changes nothing.

    Raises:
        ConfigError: a block has an unknown key or lacks one.
        DatasetError: a name holds something else already.
    """
    register_builtin()
    for name, block in cfg.DATASETS.PANOPTIC.items():
        register_source(name, _source_from_block(name, block, tuple(cfg.DATASETS.SEARCH_PATH)))
    shapes = cfg.DATASETS.SHAPES
    register_shapes(
        ShapesParams(
            height=int(shapes.IMAGE_SIZE[0]),
            width=int(shapes.IMAGE_SIZE[1]),
            num_train=int(shapes.NUM_TRAIN),
            num_val=int(shapes.NUM_VAL),
            max_objects=int(shapes.MAX_OBJECTS),
            seed=int(shapes.SEED),
            cache=shapes.CACHE,
        )
    )


def _source_from_block(name: str, block: object, search_path: tuple[str, ...]) -> PanopticSource:
    where = f"DATASETS.PANOPTIC.{name}"
    known = {**_REQUIRED, **_OPTIONAL}
    if not isinstance(block, dict):
        raise ConfigError(f"{where} is {block!r}, expected a block with the keys {list(known)}")
    for key in block:
        if key not in known:
            raise ConfigError(
                f"{where} has an unknown key {key!r}, expected {', '.join(known)}"
                + nearest(key, known)
            )
    for key in _REQUIRED:
        if not isinstance(block.get(key), str) or not block[key]:
            raise ConfigError(
                f"{where}.{key} is {block.get(key)!r}, expected a path; the block needs "
                f"{', '.join(_REQUIRED)}"
            )
    values = {argument: block[key] for key, argument in known.items() if key in block}
    check_encoding(values.get("encoding", "rgb"))
    return PanopticSource(**values, search_path=search_path)
