"""Detect the names in a weight file (Caffe2's, the model's, its backbone's) and map the last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlparse

from torch import Tensor

from panoptic_ext.errors import CheckpointError

__all__ = ["add_backbone_prefix", "has_caffe2_names", "split_heuristics"]

_BACKBONE = "backbone."


def has_caffe2_names(weights: Mapping[str, Any]) -> bool:
    """Whether the names are Caffe2's, such as `res2_0_branch2a_w`.

    Caffe2's names have no dots. Names of a torch module have one, unless the weight belongs to the
    outermost module.
    """
    return any("." not in name and name.endswith("_w") for name in weights)


def add_backbone_prefix(
    path: str, weights: Mapping[str, Any], model_state: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Rename the weights of a backbone alone, such as ImageNet's, to their names in the model.

    Weights are renamed only if no name in the file begins with `backbone.` and more than half of
    the names are those of one part of the model's backbone (the backbone itself or its
    `bottom_up`).

    Args:
        path: of the file, for messages.
        weights: name -> tensor or array of the file.
        model_state: name -> tensor of the model.

    Returns:
        All of `weights`; names that are not the backbone's are unchanged.

    Raises:
        CheckpointError: the names are the backbone's, but at least half of their shapes are not.
    """
    # A prefix for the whole file, because Detectron2's heuristics match the ends of single names:
    # they would also load `norm.weight` and the like into other parts of the model.
    weights = dict(weights)
    if any(name.startswith(_BACKBONE) for name in weights):
        return weights
    prefix = _prefix_of_most(weights, model_state)
    if not prefix:
        return weights
    names = [name for name in weights if prefix + name in model_state]
    shapes = {n: (tuple(weights[n].shape), tuple(model_state[prefix + n].shape)) for n in names}
    misfits = [name for name, (in_file, in_model) in shapes.items() if in_file != in_model]
    if 2 * len(misfits) >= len(names):
        in_file, in_model = shapes[misfits[0]]
        raise CheckpointError(
            f"weights do not fit the backbone. {path}: {len(names)} of {len(weights)} names are "
            f"those of {prefix[:-1]}, but {len(misfits)} have another shape. First: {misfits[0]} "
            f"is {in_file}, the model's is {in_model}. Use weights of this backbone's size, or set "
            "its keys (such as MODEL.SWIN) to the weights' size"
        )
    return {prefix + name if name in shapes else name: v for name, v in weights.items()}


def split_heuristics(path: str) -> tuple[str, bool]:
    """The address without Detectron2's `?matching_heuristics=True`, and whether it had that."""
    address = urlparse(path)
    if parse_qs(address.query).get("matching_heuristics") != ["True"]:
        return path, False
    return address._replace(query="").geturl(), True


def _prefix_of_most(weights: Mapping[str, Any], model_state: Mapping[str, Tensor]) -> str:
    """The prefix that makes more than half of the file's names names of the model, or ""."""
    hits: Counter[str] = Counter()
    for name in model_state:
        parts = name.split(".")
        if name.startswith(_BACKBONE):
            for i in range(1, len(parts)):
                if ".".join(parts[i:]) in weights:
                    hits[".".join(parts[:i]) + "."] += 1
    if not hits:
        return ""
    # Of prefixes with equally many names the outermost is taken: it was counted first.
    (prefix, number), *_ = hits.most_common(1)
    return prefix if 2 * number > len(weights) else ""
