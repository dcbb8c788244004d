"""The layers of timm's models with feature maps, from timm's own grouping of their parameters."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from panoptic_ext.optional_packages import import_optional

__all__ = ["timm_layers", "timm_stages"]

# What timm's wrappers of a model for feature maps put before the names of its parameters.
_WRAPPERS = ("", "model.", "body.")
# HRNet's feature_info names a module that is called differently in the model.
_RENAMED = {"stage1": "layer1"}


def timm_layers(model_name: str, names: Iterable[str]) -> tuple[dict[str, int], int]:
    """The layer of every parameter of a timm model that was created with `features_only`.

    Args:
        model_name: of a timm model.
        names: of the parameters of the model with `features_only`.

    Returns:
        Name -> layer, and the number n of layers, as in `backbone_layers`; nothing and 0 if timm
        does not group the parameters of this model. Stages that the model does not have, because
        its last feature maps are not wanted, are not counted.
    """
    groups = _groups(model_name)
    if not groups:
        return {}, 0
    # timm has the stem in group 0, the blocks behind it, and what follows no block in the last
    # group: the classifier, which no model with `features_only` has.
    behind = max(groups.values())
    # A child of a Sequential becomes one of the wrapper: stages.0 is called stages_0 there.
    groups.update({name.replace(".", "_", 1): group for name, group in groups.items()})
    found = {name: _group_of(name, groups, behind) for name in names}
    blocks = sorted({max(group, 1) for group in found.values() if group < behind})
    layer = {group: i for i, group in enumerate(blocks)} | {0: 0, behind: len(blocks)}
    return {name: layer[group] for name, group in found.items()}, len(blocks)


def timm_stages(net: nn.Module, ends: Iterable[tuple[str, int]]) -> dict[str, int]:
    """The stage of every parameter of a timm model that was created with `features_only`.

    Args:
        net: the model; its modules are in the order in which they run.
        ends: the module that gives the features at the end of each stage, by its name in timm's
            own model, and the stage's number, fine to coarse.

    Returns:
        Name -> stage; 0 for what comes before the first of these modules, and one more than the
        last stage for what comes behind the last.
    """
    order = [name for name, _ in net.named_modules()]
    spans = [(*_span(order, module), stage) for module, stage in ends]
    spans = [span for span in spans if span[1] >= 0]  # without stages that were left out
    stages = {}
    for name, _ in net.named_parameters():
        place = order.index(name.rpartition(".")[0])
        if spans and place < spans[0][0]:
            stages[name] = 0
        else:
            behind = spans[-1][2] + 1 if spans else 0
            stages[name] = next((stage for _, end, stage in spans if place <= end), behind)
    return stages


def _span(order: list[str], module: str) -> tuple[int, int]:
    """First and last position of a module and of those inside it; -1 if it is not there."""
    other = _RENAMED.get(module, module.replace(".", "_", 1))
    names = [w + n for w in _WRAPPERS for n in (module, other)]
    inside = [
        i for i, name in enumerate(order) if any(f"{name}.".startswith(f"{n}.") for n in names)
    ]
    return (inside[0], inside[-1]) if inside else (-1, -1)


def _groups(model_name: str) -> dict[str, int]:
    models = import_optional("timm.models", "timm", f"timm's model {model_name!r}")
    with torch.device("meta"):  # no memory for weights
        model = models.create_model(model_name)
    if not hasattr(model, "group_matcher"):
        return {}
    return models.group_parameters(model, model.group_matcher(coarse=False), reverse=True)


def _group_of(name: str, groups: dict[str, int], otherwise: int) -> int:
    inside = (name.removeprefix(wrapper) for wrapper in _WRAPPERS)
    return next((groups[candidate] for candidate in inside if candidate in groups), otherwise)
