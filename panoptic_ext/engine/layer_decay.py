"""Learning rates of a backbone's layers, and the mark of its groups for the second warm-up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from panoptic_ext.errors import ConfigError, listed
from panoptic_ext.modeling.backbone.backbone_layers import Layer, parameter_layers

__all__ = [
    "BACKBONE_MARK",
    "backbone_prefixes",
    "check_layer_keys",
    "layer_factor",
    "split_by_layer",
]

BACKBONE_MARK = "is_backbone"
"""Key of a group of parameters that the second warm-up is for."""

_NO_LAYER = Layer(0, 0)  # factor 1


def backbone_prefixes(model: nn.Module) -> tuple[str, ...]:
    """Beginnings of the names of the backbone's parameters."""
    return getattr(model, "backbone_prefixes", ("backbone.",))


def layer_factor(layer: Layer, decay: float, free_blocks: int) -> float:
    """Learning rate of a layer, relative to that of the last block.

    Args:
        layer: of a parameter.
        decay: ratio of the rates of a block and the next one, in (0, 1].
        free_blocks: number of last blocks whose factor is 1.
    """
    if layer.block >= layer.num_blocks - free_blocks:
        return 1.0
    return decay ** (layer.num_blocks - 1 - layer.block)


def split_by_layer(
    groups: list[dict[str, Any]], model: nn.Module, solver: CfgNode
) -> list[dict[str, Any]]:
    """Multiply learning rates by SOLVER.LAYER_DECAY and mark what the second warm-up is for.

    Without LAYER_DECAY and BACKBONE_WARMUP_ITERS the groups come back as they are, so that
    optimizers of earlier runs still fit.

    Args:
        groups: dicts with "params", "lr" and "weight_decay".
        model: the parameters' model.
        solver: the keys SOLVER.

    Returns:
        Such dicts, with BACKBONE_MARK in those of the backbone if it has its own warm-up.

    Raises:
        ConfigError: a key is out of its range, or the layers of the backbone are unknown.
    """
    check_layer_keys(solver)
    if solver.LAYER_DECAY == 1 and not solver.BACKBONE_WARMUP_ITERS:
        return groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    prefixes = backbone_prefixes(model)
    layers = parameter_layers(model, prefixes)
    trained = {names[parameter] for group in groups for parameter in group["params"]}
    of_backbone = {name for name in trained if name.startswith(prefixes)}
    if solver.LAYER_DECAY < 1 and of_backbone:
        _check_layers(layers, of_backbone, solver)
    # A backbone whose layers are unknown warms up as a whole.
    late = (layers.keys() or of_backbone) if solver.BACKBONE_WARMUP_ITERS else set()
    split: dict[tuple[float, float, bool], list[nn.Parameter]] = defaultdict(list)
    for group in groups:
        for parameter in group["params"]:
            name = names[parameter]
            layer = layers.get(name, _NO_LAYER)
            factor = layer_factor(layer, solver.LAYER_DECAY, solver.LAYER_DECAY_FREE_BLOCKS)
            split[group["lr"] * factor, group["weight_decay"], name in late].append(parameter)
    return [
        {"params": parameters, "lr": lr, "weight_decay": decay}
        | ({BACKBONE_MARK: True} if marked else {})
        for (lr, decay, marked), parameters in split.items()
    ]


def check_layer_keys(solver: CfgNode) -> None:
    """Raise ConfigError unless the keys of this module are in their ranges."""
    if not 0 < solver.LAYER_DECAY <= 1:
        raise ConfigError(
            f"SOLVER.LAYER_DECAY = {solver.LAYER_DECAY}, expected more than 0 and at most 1; 1 is "
            "the same learning rate in all layers of the backbone"
        )
    for key in ("LAYER_DECAY_FREE_BLOCKS", "BACKBONE_WARMUP_ITERS"):
        if solver[key] < 0:
            raise ConfigError(f"SOLVER.{key} = {solver[key]}, expected at least 0")


def _check_layers(layers: Mapping[str, Layer], names: Collection[str], solver: CfgNode) -> None:
    """Raise ConfigError if a backbone has no layers, or fewer blocks than are to be free."""
    number = min((layer.num_blocks for layer in layers.values()), default=0)
    if not number:
        raise ConfigError(
            f"SOLVER.LAYER_DECAY = {solver.LAYER_DECAY}, but the layers of the backbone are "
            f"unknown: its parameters ({listed(sorted(names), 3)}) do not have the usual names of "
            "blocks; give its class num_layers and layer_of (LayeredBackbone in "
            "panoptic_ext/modeling/backbone/backbone_layers.py), or set the key to 1.0"
        )
    if number < solver.LAYER_DECAY_FREE_BLOCKS:
        raise ConfigError(
            f"SOLVER.LAYER_DECAY_FREE_BLOCKS = {solver.LAYER_DECAY_FREE_BLOCKS}, but the backbone "
            f"has {number} blocks; expected 0 to {number}"
        )
