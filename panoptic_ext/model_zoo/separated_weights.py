"""Weights of Detectron2's own Panoptic FPN as a file that every checkpointer loads into ours.

Our checkpointer would map them by itself (`UnifiedPanopticFPN.adapt_state_dict`). Detectron2's
would leave the semantic head at its random values, with a warning only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from panoptic_ext.data.datasets.known_classes import known_categories
from panoptic_ext.download import sha256_of
from panoptic_ext.engine.checkpoint.read_weights import load_pickle
from panoptic_ext.errors import CheckpointError, ConfigError
from panoptic_ext.model_zoo.converted_files import converted_file
from panoptic_ext.model_zoo.entry import ZooEntry
from panoptic_ext.modeling.meta_arch.classes import DatasetClasses
from panoptic_ext.modeling.meta_arch.separated_ids import (
    detectron2_channels,
    to_contiguous_channels,
)

__all__ = ["contiguous_weights"]

_PREDICTOR = "sem_seg_head.predictor."


def contiguous_weights(entry: ZooEntry, path: str) -> str:
    """The path of an entry's weights with a semantic channel for each contiguous id.

    Args:
        entry: its data set has the classes of COCO.
        path: of the published file.

    Raises:
        ConfigError: the classes are not COCO's.
        CheckpointError: the file cannot be read, or its semantic head has other channels.
    """
    categories = known_categories(entry.data_set) or ()
    dataset = DatasetClasses(
        entry.data_set,
        tuple(category.isthing for category in categories),
        tuple(category.name for category in categories),
    )
    channels = detectron2_channels(dataset)
    if channels is None:
        raise ConfigError(
            f"{entry.path}: convert is separated_ids, which is for the classes of COCO, but "
            f"data_set is {entry.data_set}; leave `convert` out"
        )
    return converted_file(entry.name, sha256_of(path), lambda: _converted(path, channels))


def _converted(path: str, channels: list[int]) -> Mapping[str, Any]:
    loaded = load_pickle(path)
    weights = loaded.get("model") if isinstance(loaded, dict) else None
    if not isinstance(weights, dict) or not to_contiguous_channels(weights, _PREDICTOR, channels):
        raise CheckpointError(
            f"{path} is no file of Detectron2's Panoptic FPN: expected {_PREDICTOR}weight with "
            f"{max(channels) + 1} channels"
        )
    return {"model": {name: torch.as_tensor(value) for name, value in weights.items()}}
