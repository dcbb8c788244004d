"""Weight files that are converted once and kept in the cache of downloads."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import torch

from panoptic_ext.atomic import write_atomic
from panoptic_ext.download_errors import cache_folder
from panoptic_ext.engine.checkpoint.archive_checksums import check_checksums
from panoptic_ext.engine.checkpoint.backbone_input import BACKBONE_INPUT, BackboneInput
from panoptic_ext.errors import CheckpointError

__all__ = ["backbone_file", "converted_file"]

_VERSION = 1  # of the conversion: a new one leaves the old files alone


def converted_file(name: str, source: str, convert: Callable[[], Mapping[str, Any]]) -> str:
    """The path of a converted file, which is written unless it is there and whole.

    Several processes may do so at once: each writes a file of its own and renames it.

    Args:
        name: the beginning of the file's name; a / becomes a -.
        source: what the content depends on, such as a hash of the file that is converted.
        convert: gives the content: tensors and plain values.

    Raises:
        CheckpointError: the cache cannot be written, and whatever `convert` raises.
    """
    key = hashlib.sha256(f"{_VERSION} {source}".encode()).hexdigest()[:16]
    folder = os.path.join(cache_folder(), "panoptic_ext", "converted")
    path = os.path.join(folder, f"{name.replace('/', '-')}-{key}.pth")
    if _is_whole(path):
        return path
    content = dict(convert())
    try:
        os.makedirs(folder, exist_ok=True)
        write_atomic(path, lambda stream: torch.save(content, stream))
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise CheckpointError(
            f"the converted weights of {name} cannot be written to {path}: {error}. Free space, or "
            "name a folder that is writable by FVCORE_CACHE"
        ) from error
    return path


def backbone_file(weights: Mapping[str, torch.Tensor], expected: BackboneInput) -> dict[str, Any]:
    """The content of a weight file of a backbone, as both checkpointers load it.

    Args:
        weights: by the names of timm's model.
        expected: what the weights were trained with.
    """
    return {
        "model": dict(weights),
        # Detectron2's own checkpointer finds the names below `backbone.` by these heuristics; ours
        # looks for one prefix of all names.
        "matching_heuristics": True,
        BACKBONE_INPUT: expected.as_dict(),
    }


def _is_whole(path: str) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    try:
        check_checksums(path)
    except CheckpointError:
        return False
    return True
