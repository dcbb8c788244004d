"""The layer of every parameter of a backbone, for learning rates that fall towards the image.

The layers of a backbone are its blocks, 0 to n - 1, numbered through all its stages. What comes
before the blocks (stem, embedding of patches and positions, class and register tokens) has the
layer of block 0; a downsampling between two stages that of the block beside it. What comes behind
the blocks (last norm, norms of the outputs) has the layer n.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import NamedTuple, Protocol, runtime_checkable

from torch import nn

__all__ = ["Layer", "LayeredBackbone", "layers_of_names", "parameter_layers", "stages_of_names"]


@runtime_checkable
class LayeredBackbone(Protocol):
    """A backbone that knows its layers; one that has usual names of blocks need not say them."""

    @property
    def num_layers(self) -> int:
        """n; 0 if it does not know its layers after all."""
        ...

    def layer_of(self, parameter_name: str) -> int:
        """The layer, 0 to n, of a parameter by its name in `named_parameters()`."""
        ...


class Layer(NamedTuple):
    """The layer of a parameter: `block` is 0 to `num_blocks`, which is behind the last one.

    `num_blocks` is 0 where the layers are unknown.
    """

    block: int
    num_blocks: int


class _Naming(NamedTuple):
    """Names of the parameters of a family of backbones, as patterns of the name's beginning.

    Attributes:
        block: its groups are the numbers that order the blocks.
        opens_stage, closes_stage: of a downsampling before the first or after the last block of its
            stage; the group is the number of the stage.
        behind: of what comes behind the blocks. All other names come before them.
    """

    block: str
    opens_stage: str = ""
    closes_stage: str = ""
    behind: str = r"(\w+_)?norms?\d*\."


# The first that has a block among the names is taken.
_NAMINGS = (
    # Detectron2's ResNet and RegNet, and the ResNet of timm and torchvision
    _Naming(r"res(\d+)\.(\d+)\.", behind=r"linear\."),
    _Naming(r"s(\d+)\.b(\d+)\."),
    _Naming(r"layer(\d+)\.(\d+)\.", behind=r"fc\."),
    # Swin: ours and that of Detectron2's main branch; transformers'
    _Naming(r"layers\.(\d+)\.blocks\.(\d+)\.", closes_stage=r"layers\.(\d+)\.downsample\."),
    _Naming(
        r"(?:swin\.)?encoder\.layers\.(\d+)\.blocks\.(\d+)\.",
        closes_stage=r"(?:swin\.)?encoder\.layers\.(\d+)\.downsample\.",
        behind=r"(swin\.layernorm|layernorm|hidden_states_norms)\.",
    ),
    # ResNet, ConvNeXt and the like of transformers
    _Naming(
        r"encoder\.stages\.(\d+)\.layers\.(\d+)\.",
        opens_stage=r"encoder\.stages\.(\d+)\.downsampling_layer\.",
        behind=r"(layernorm|hidden_states_norms)\.",
    ),
    # Plain ViTs: timm's and Detectron2's; transformers'
    _Naming(r"blocks\.(\d+)\."),
    _Naming(r"(?:encoder\.)?layers?\.(\d+)\.", behind=r"(layernorm|norm|hidden_states_norms)\."),
)


def parameter_layers(model: nn.Module, prefixes: tuple[str, ...]) -> dict[str, Layer]:
    """The layers of the parameters in the backbones of a model.

    A module that has `num_layers` and `layer_of`, or parameters with the usual names of blocks, is
    a backbone. Around it there may be parts without layers, such as a feature pyramid.

    Args:
        model: any model.
        prefixes: beginnings of the names of its parameters among which backbones are looked for.

    Returns:
        Name -> layer. Parameters outside a backbone, or in one whose names are unknown, have none.
    """
    names = [name for name, _ in model.named_parameters() if name.startswith(prefixes)]
    return _layers_below(model, "", names)


def layers_of_names(names: Collection[str]) -> dict[str, Layer]:
    """The layer of every parameter of one backbone; empty if no name is that of a block.

    Args:
        names: of all its parameters, relative to the backbone.
    """
    for naming in _NAMINGS:
        numbers = {name: _numbers(naming.block, name) for name in names}
        blocks = sorted({number for number in numbers.values() if number})
        if blocks:
            return {
                name: Layer(_block_of(name, number, naming, blocks), len(blocks))
                for name, number in numbers.items()
            }
    return {}


def stages_of_names(names: Collection[str]) -> dict[str, int]:
    """The stage of every parameter of one backbone; empty if no name is that of a block.

    Args:
        names: of all its parameters, relative to the backbone.

    Returns:
        Name -> 0 for what comes before the blocks, 1 to n for its n stages, n + 1 for what comes
        behind them. In a backbone whose names have no stages, each block is one.
    """
    for naming in _NAMINGS:
        stages = sorted({number[0] for n in names if (number := _numbers(naming.block, n))})
        if stages:
            return {name: _stage_of(name, naming, stages) for name in names}
    return {}


def _stage_of(name: str, naming: _Naming, stages: list[int]) -> int:
    for pattern in (naming.block, naming.opens_stage, naming.closes_stage):
        number = _numbers(pattern, name) if pattern else ()
        if number and number[0] in stages:
            return stages.index(number[0]) + 1
    return len(stages) + 1 if re.match(naming.behind, name) else 0


def _block_of(
    name: str, number: tuple[int, ...], naming: _Naming, blocks: list[tuple[int, ...]]
) -> int:
    if number:
        return blocks.index(number)
    for pattern, beside in ((naming.opens_stage, 0), (naming.closes_stage, -1)):
        stage = _numbers(pattern, name) if pattern else ()
        within = [i for i, block in enumerate(blocks) if stage and block[:1] == stage]
        if within:
            return within[beside]
    return len(blocks) if re.match(naming.behind, name) else 0


def _numbers(pattern: str, name: str) -> tuple[int, ...]:
    match = re.match(pattern, name)
    return tuple(map(int, match.groups())) if match else ()


def _layers_below(module: nn.Module, prefix: str, names: Iterable[str]) -> dict[str, Layer]:
    relative = [name.removeprefix(prefix) for name in names]
    if isinstance(module, LayeredBackbone):
        return {prefix + n: Layer(module.layer_of(n), module.num_layers) for n in relative}
    layers = layers_of_names(relative)
    if layers:
        return {prefix + name: layer for name, layer in layers.items()}
    by_child: dict[str, list[str]] = defaultdict(list)
    for name in relative:
        child, dot, _ = name.partition(".")
        if dot:
            by_child[child].append(prefix + name)
    found = {}
    for child, inside in by_child.items():
        found.update(_layers_below(module.get_submodule(child), f"{prefix}{child}.", inside))
    return found
