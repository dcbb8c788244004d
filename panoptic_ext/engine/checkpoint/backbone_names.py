"""Whose names the tensors of a weight file have: Caffe2's, the model's, or its backbone's alone."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlparse

from torch import Tensor

from panoptic_ext.errors import CheckpointError

__all__ = ["add_backbone_prefix", "has_caffe2_names", "split_heuristics"]

logger = logging.getLogger(__name__)

_BACKBONE = "backbone."


def has_caffe2_names(weights: Mapping[str, Any]) -> bool:
    """Whether names are Caffe2's, as `res2_0_branch2a_w`: it has no dots, and torch joins by them.

    Weights of a torch module have a dot unless they lie in the outermost module.
    """
    return any("." not in name and name.endswith("_w") for name in weights)


def add_backbone_prefix(
    path: str, weights: Mapping[str, Any], model_state: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Weights of a backbone alone, such as ImageNet's, by their names in the model.

    That is done where no name of the file begins with `backbone.`, and a part of the model's
    backbone (itself, or its `bottom_up`) has most of the names. Heuristics that match ends of
    names would take `norm.weight` and the like for those of other parts.

    Args:
        path: of the file, for messages.
        weights: name -> tensor or array of the file.
        model_state: name -> tensor of the model.

    Returns:
        All of `weights`; other names stay as they are.

    Raises:
        CheckpointError: the names are the backbone's, but most shapes are not.
    """
    weights = dict(weights)
    if any(name.startswith(_BACKBONE) for name in weights):
        return weights
    prefix = _prefix_of_most(weights, model_state)
    if not prefix:
        return weights
    names = [name for name in weights if prefix + name in model_state]
    shapes = {n: (tuple(weights[n].shape), tuple(model_state[prefix + n].shape)) for n in names}
    others = [name for name, (found, wanted) in shapes.items() if found != wanted]
    if 2 * len(others) >= len(names):
        found, wanted = shapes[others[0]]
        raise CheckpointError(
            f"weights do not fit the backbone. {path}: {len(names)} of {len(weights)} names are "
            f"those of {prefix[:-1]}, but {len(others)} have another shape. First: {others[0]} is "
            f"{found}, the model's is {wanted}. Use weights of this backbone's size, or set its "
            "keys (such as MODEL.SWIN) to the weights' size"
        )
    logger.info("%s: %d of %d names belong to %s", path, len(names), len(weights), prefix[:-1])
    return {prefix + name if name in shapes else name: v for name, v in weights.items()}


def split_heuristics(path: str) -> tuple[str, bool]:
    """Detectron2's `?matching_heuristics=True` at the end of an address, taken off."""
    address = urlparse(path)
    if parse_qs(address.query).get("matching_heuristics") != ["True"]:
        return path, False
    return address._replace(query="").geturl(), True


def _prefix_of_most(weights: Mapping[str, Any], model_state: Mapping[str, Tensor]) -> str:
    """What, put before the names of the file, gives the model's for more than half; else ""."""
    hits: Counter[str] = Counter()
    for name in model_state:
        parts = name.split(".")
        if name.startswith(_BACKBONE):
            for i in range(1, len(parts)):
                if ".".join(parts[i:]) in weights:
                    hits[".".join(parts[:i]) + "."] += 1
    if not hits:
        return ""
    (prefix, number), *_ = hits.most_common(1)  # the outermost of equals, which comes first
    return prefix if 2 * number > len(weights) else ""
