"""Read a file of weights of any kind: torch's, pickles of model zoos, safetensors, files in parts.

`save_pretrained` of transformers writes a folder with `model.safetensors`, or with several files
and an index that says which tensor is in which; files of 2024 and before may be torch's.
"""

from __future__ import annotations

import json
import os
from typing import Any

from torch import Tensor

from panoptic_ext.engine.checkpoint.backbone_names import has_caffe2_names
from panoptic_ext.engine.checkpoint.read_weights import check_file, load_pickle, load_torch
from panoptic_ext.errors import NOT_JSON, CheckpointError, listed
from panoptic_ext.optional_packages import import_optional
from panoptic_ext.regular_files import CHECKPOINT, check_regular_file

__all__ = ["read_weight_file", "weights_in"]

_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def weights_in(path: str) -> str:
    """The file of weights in a folder that `save_pretrained` wrote; a file's path is unchanged.

    Raises:
        CheckpointError: a folder without such a file.
    """
    if not os.path.isdir(path):
        return path
    found = next((name for name in _FILES if os.path.isfile(os.path.join(path, name))), "")
    if not found:
        others = [name for name in sorted(os.listdir(path)) if name.endswith((".pth", ".pkl"))]
        mend = f"; take a file in it, such as {listed(others, 3, show=str)}" if others else ""
        raise CheckpointError(
            f"checkpoint {path} is a folder without weights, expected one that save_pretrained of "
            f"transformers wrote, with {', '.join(_FILES[::2])} or the index of one{mend}"
        )
    return os.path.join(path, found)


def read_weight_file(path: str, *, allow_pickle: bool = False) -> dict[str, Any]:
    """File -> {"model": name -> tensor or array, ...}, as Detectron2's checkpointer expects it.

    Args:
        path: ends in .pkl (model zoos), .pyth (pycls), .safetensors, .index.json (files in parts);
            any other file is torch's.
        allow_pickle: also read files that could run code (MODEL.ALLOW_PICKLE).

    Raises:
        CheckpointError: the file is missing, unreadable or unsafe, or holds no tensors by name.
    """
    if path.endswith(".pkl"):
        return _of_model_zoo(path, allow_pickle)
    if path.endswith(".index.json"):
        return {"model": _of_parts(path, allow_pickle)}
    if path.endswith(".safetensors"):
        return {"model": _of_safetensors(path)}
    loaded = load_torch(path, allow_pickle=allow_pickle)
    _check_mapping(path, loaded)
    if path.endswith(".pyth") and "model_state" in loaded:  # pycls
        weights = {
            k: v for k, v in loaded["model_state"].items() if not k.endswith("num_batches_tracked")
        }
        return {"model": weights, "__author__": "pycls", "matching_heuristics": True}
    return loaded if "model" in loaded else {"model": loaded}


def _of_model_zoo(path: str, allow_pickle: bool) -> dict[str, Any]:
    loaded = load_pickle(path, allow_pickle=allow_pickle)
    _check_mapping(path, loaded)
    if "model" in loaded and "__author__" in loaded:
        return loaded
    weights = loaded.get("blobs", loaded.get("model", loaded))
    if "blobs" in loaded or has_caffe2_names(weights):  # Caffe2 and Detectron1
        blobs = {k: v for k, v in weights.items() if not k.endswith("_momentum")}
        return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}
    return loaded if "model" in loaded else {"model": loaded}


def _check_mapping(path: str, loaded: Any) -> None:
    weights = loaded.get("model", loaded) if isinstance(loaded, dict) else loaded
    names = list(weights) if isinstance(weights, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"checkpoint {path} holds a {type(weights).__name__}, expected a dict of "
            "tensors by parameter name (or one under the key 'model')"
        )


def _of_safetensors(path: str) -> dict[str, Tensor]:
    """A file of safetensors, which cannot hold code; its tensors are loaded to the CPU."""
    check_file(path)
    package = import_optional("safetensors", "hf", f"checkpoint {path}", error=CheckpointError)
    module = import_optional("safetensors.torch", "hf", f"checkpoint {path}", error=CheckpointError)
    try:
        return module.load_file(path, device="cpu")
    except (package.SafetensorError, OSError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise CheckpointError(
            f"checkpoint {path} ({os.path.getsize(path)} bytes) cannot be read: {reason}. It is "
            "damaged or no file of safetensors: fetch or copy it again"
        ) from error


def _of_parts(index: str, allow_pickle: bool) -> dict[str, Any]:
    """All tensors of an index: JSON with "weight_map", name of a tensor -> file beside it."""
    check_regular_file(index, CHECKPOINT, error=CheckpointError)
    try:
        with open(index, encoding="utf-8") as stream:
            places = json.load(stream)["weight_map"]
        names = sorted({os.path.basename(place) for place in places.values()})
    except (KeyError, TypeError, AttributeError, *NOT_JSON) as error:
        raise CheckpointError(
            f"checkpoint {index} is no index of files with weights: expected JSON with weight_map, "
            "the file of each tensor; fetch or copy it again"
        ) from error
    weights: dict[str, Any] = {}
    for name in names:
        part = os.path.join(os.path.dirname(index), name)
        weights.update(read_weight_file(part, allow_pickle=allow_pickle)["model"])
    missing = sorted(places.keys() - weights.keys())
    if missing:
        raise CheckpointError(
            f"checkpoint {index}: {len(missing)} tensors are not in the files that it names, such "
            f"as {missing[0]} in {places[missing[0]]}; fetch or copy them again"
        )
    return weights
