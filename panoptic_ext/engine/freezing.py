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
    prefix = _prefix_of_backbone(model)
    backbone = model.get_submodule(prefix.rstrip("."))
    if number == "all":
        names |= {prefix + name for name, _ in backbone.named_parameters()}
        parts.append(prefix.rstrip("."))
    elif number:
        names |= {prefix + name for name in early_parameters(backbone, number)}
        stages = f" and {number - 1} stages" if number > 1 else ""
        parts.append(f"the stem{stages} of {prefix.rstrip('.')}")
    if cfg.MODEL.BACKBONE.FREEZE_NORMS:
        of_norms, norms = norm_parameters(backbone)
        names |= {prefix + name for name in of_norms}
        parts.append(f"the norms of {prefix.rstrip('.')}")
    names |= parameters_below(model, cfg.MODEL.FREEZE)
    parts += cfg.MODEL.FREEZE
    if parts:
        freeze_parameters(model, names, norms)
        sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
        trained = sum(size for size, needs_gradient in sizes if needs_gradient)
        logger.info(
            "Frozen: %s; %s of %s parameters are trained",
            ", ".join(parts),
            f"{trained:,}",
            f"{sum(size for size, _ in sizes):,}",
        )


def _prefix_of_backbone(model: nn.Module) -> str:
    """The beginning of the names of the backbone's parameters, without a pyramid around it."""
    if not isinstance(getattr(model, "backbone", None), nn.Module):
        return backbone_prefixes(model)[0]
    module, prefix = model.backbone, "backbone."
    while isinstance(getattr(module, "bottom_up", None), nn.Module):
        module, prefix = module.bottom_up, f"{prefix}bottom_up."
    return prefix
