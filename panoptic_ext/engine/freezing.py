"""Freeze what a config says: MODEL.BACKBONE.FREEZE, MODEL.BACKBONE.FREEZE_NORMS, MODEL.FREEZE."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode
from torch import nn

from panoptic_ext.engine.layer_decay import backbone_prefixes
from panoptic_ext.modeling.backbone.freezing import (
    early_parameters,
    freeze_parameters,
    norm_parameters,
    parameters_below,
)

__all__ = ["freeze"]

logger = logging.getLogger(__name__)


def freeze(model: nn.Module, cfg: CfgNode) -> None:
    """Freeze the parts of a model that the config names, in place, and log what is trained.

    Raises:
        ConfigError: a name fits no parameter, or the backbone does not have so many stages.
    """
    number = cfg.MODEL.BACKBONE.FREEZE
    names: set[str] = set()
    parts: list[str] = []
    norms: list[nn.Module] = []
    prefix, backbone, described = _backbone_of(model)
    if number == "all":
        names |= {prefix + name for name, _ in backbone.named_parameters()}
        parts.append(described)
    elif number:
        names |= {prefix + name for name in early_parameters(backbone, number)}
        stages = f" and {number - 1} stages" if number > 1 else ""
        parts.append(f"the stem{stages} of {described}")
    if cfg.MODEL.BACKBONE.FREEZE_NORMS:
        of_norms, norms = norm_parameters(backbone)
        names |= {prefix + name for name in of_norms}
        parts.append(f"the norms of {described}")
    names |= parameters_below(model, cfg.MODEL.FREEZE)
    parts += cfg.MODEL.FREEZE
    if parts:
        parts += _frozen_already(model, names)
        freeze_parameters(model, names, norms)
        sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
        trained = sum(size for size, needs_gradient in sizes if needs_gradient)
        logger.info(
            "Frozen: %s; %s of %s parameters are trained",
            ", ".join(parts),
            f"{trained:,}",
            f"{sum(size for size, _ in sizes):,}",
        )


def _frozen_already(model: nn.Module, names: set[str]) -> list[str]:
    """What the model froze when it was built and `names` do not have, for the log."""
    others = [n for n, p in model.named_parameters() if not p.requires_grad and n not in names]
    if not others:
        return []
    # Detectron2's ResNets have FREEZE_AT 2, so that a smaller FREEZE frees nothing.
    return [
        f"{len(others)} parameters as the model is built (FREEZE_AT, for one), {others[0]} first"
    ]


def _backbone_of(model: nn.Module) -> tuple[str, nn.Module, str]:
    """The backbone, without a pyramid around it.

    Returns:
        The beginning of the names of its parameters; the backbone; its name for messages.
    """
    if isinstance(getattr(model, "backbone", None), nn.Module):
        module, name = model.backbone, "backbone"
        while isinstance(getattr(module, "bottom_up", None), nn.Module):
            module, name = module.bottom_up, f"{name}.bottom_up"
        return f"{name}.", module, name
    names = [prefix.rstrip(".") for prefix in backbone_prefixes(model)]
    if len(names) == 1:
        return f"{names[0]}.", model.get_submodule(names[0]), names[0]
    # The backbone of transformers' EoMT is two modules of a larger one.
    parent = names[0].rpartition(".")[0]
    modules = {name.rpartition(".")[2]: model.get_submodule(name) for name in names}
    return f"{parent}.", nn.ModuleDict(modules), " and ".join(names)
