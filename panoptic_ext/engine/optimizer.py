"""Build the optimizer and the learning rate schedule of a config."""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler as build_detectron2_scheduler
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn

from panoptic_ext.engine.layer_decay import backbone_prefixes, split_by_layer
from panoptic_ext.engine.schedule import poly_schedule, two_warmups_schedule
from panoptic_ext.errors import ConfigError, check_known, quoted

__all__ = ["build_lr_scheduler", "build_optimizer", "param_groups", "solver_groups"]

logger = logging.getLogger(__name__)

_OPTIMIZERS = ("SGD", "ADAMW")
# Position embeddings of Swin. They have no weight decay, as in Swin's own training and in the
# published Mask2Former.
_SWIN_POSITIONS = ("relative_position_bias_table", "absolute_pos_embed")


def param_groups(
    model: nn.Module,
    *,
    base_lr: float,
    weight_decay: float,
    weight_decay_norm: float | None = None,
    weight_decay_bias: float | None = None,
    weight_decay_embed: float | None = None,
    bias_lr_factor: float = 1.0,
    backbone_multiplier: float = 1.0,
) -> list[dict[str, Any]]:
    """Group parameters by their learning rate and weight decay.

    Position embeddings of Swin have no weight decay.

    Args:
        model: its trainable parameters are grouped, each once.
        base_lr, weight_decay: values of the parameters to which nothing below applies.
        weight_decay_norm, weight_decay_bias, weight_decay_embed: weight decay of normalization
            layers, biases and nn.Embedding; None is `weight_decay`.
        bias_lr_factor: learning rate of biases relative to `base_lr`.
        backbone_multiplier: learning rate of the backbone's parameters relative to the others: of
            those under `backbone.`, or under the model's `backbone_prefixes` where it has any.

    Returns:
        Dicts with "params", "lr" and "weight_decay", one for each pair of the two values.
    """
    groups = get_default_optimizer_params(
        model,
        base_lr=base_lr,
        weight_decay=weight_decay,
        weight_decay_norm=weight_decay_norm,
        bias_lr_factor=bias_lr_factor,
        weight_decay_bias=weight_decay_bias,
        overrides={name: {"weight_decay": 0.0} for name in _SWIN_POSITIONS},
    )
    embeddings = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(False)
    }
    prefixes = backbone_prefixes(model)
    backbone = {id(p) for name, p in model.named_parameters() if name.startswith(prefixes)}
    merged: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for group in groups:
        for parameter in group["params"]:
            lr, decay = group.get("lr", base_lr), group.get("weight_decay", weight_decay)
            if id(parameter) in backbone:
                lr *= backbone_multiplier
            if id(parameter) in embeddings and weight_decay_embed is not None:
                decay = weight_decay_embed
            merged[lr, decay].append(parameter)
    return [{"params": p, "lr": lr, "weight_decay": wd} for (lr, wd), p in merged.items()]


def solver_groups(solver: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    """The parameters of a model, grouped by the keys SOLVER; see `param_groups`, `split_by_layer`.

    Raises:
        ConfigError: a key is out of its range, or the layers of the backbone are unknown.
    """
    groups = param_groups(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        weight_decay_embed=solver.WEIGHT_DECAY_EMBED,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        backbone_multiplier=solver.BACKBONE_MULTIPLIER,
    )
    return split_by_layer(groups, model, solver)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build SGD or AdamW, by SOLVER.OPTIMIZER, with gradient clipping if that is enabled.

    SOLVER.CLIP_GRADIENTS.CLIP_TYPE may be "full_model" (one norm over all gradients) as well as
    Detectron2's "value" and "norm" (of each parameter). CLIP_VALUE 0 disables clipping, as in the
    published Mask2Former, because gradients clipped to 0 would train nothing.

    Raises:
        ConfigError: unknown optimizer or clip type, a CLIP_VALUE below 0, no parameter to train, or
            what `solver_groups` refuses.
    """
    solver = cfg.SOLVER
    groups = solver_groups(solver, model)
    if not groups:
        raise ConfigError("the model has no parameter to train: all parameters are frozen")
    name = solver.OPTIMIZER.upper()
    check_known("SOLVER.OPTIMIZER", name, _OPTIMIZERS)
    options: dict[str, Any] = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    kind: type[torch.optim.Optimizer] = torch.optim.AdamW
    if name == "SGD":
        kind = torch.optim.SGD
        options.update(momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)
    return _with_clipping(cfg, kind, groups, options)


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
    """Build one of Detectron2's schedules or a WarmupPolyLR, with one warm-up or two.

    SOLVER.CURVE_AFTER_WARMUP starts the curve behind the warm-up. BACKBONE_WARMUP_ITERS is for an
    optimizer of `build_optimizer`, which marks the groups of the backbone.

    Raises:
        ConfigError: the name is unknown, or the schedule cannot use the values of its keys.
    """
    solver = cfg.SOLVER
    if solver.BACKBONE_WARMUP_ITERS or solver.CURVE_AFTER_WARMUP:
        return two_warmups_schedule(solver, optimizer)
    if solver.LR_SCHEDULER_NAME == "WarmupPolyLR":
        return poly_schedule(solver, optimizer)
    try:
        return build_detectron2_scheduler(cfg, optimizer)
    except (AssertionError, ValueError) as error:
        raise ConfigError(
            f"the learning rate schedule SOLVER.LR_SCHEDULER_NAME = "
            f"{quoted(solver.LR_SCHEDULER_NAME)} cannot be built: {error}. Known: "
            "WarmupMultiStepLR "
            "(SOLVER.STEPS increasing and below MAX_ITER), WarmupCosineLR, WarmupPolyLR"
        ) from error


def _with_clipping(
    cfg: CfgNode, kind: type[torch.optim.Optimizer], groups: list, options: dict[str, Any]
) -> torch.optim.Optimizer:
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED:
        _check_clipping(clip)
    if not clip.ENABLED or clip.CLIP_VALUE == 0:
        return kind(groups, **options)
    if clip.CLIP_TYPE in ("value", "norm"):
        return maybe_add_gradient_clipping(cfg, kind)(groups, **options)
    max_norm, norm_type = clip.CLIP_VALUE, clip.NORM_TYPE

    def clip_full_model(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)

    # Clipping happens in a hook of step(), because it must see the gradients that the gradient
    # scaler has unscaled.
    optimizer = kind(groups, **options)
    optimizer.register_step_pre_hook(clip_full_model)
    return optimizer


def _check_clipping(clip: CfgNode) -> None:
    known = ("value", "norm", "full_model")
    check_known("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clip.CLIP_TYPE, known)
    if not clip.CLIP_VALUE >= 0:
        raise ConfigError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_VALUE = {clip.CLIP_VALUE}, expected more than 0, or 0 for "
            "no clipping"
        )
    if clip.CLIP_VALUE == 0:
        logger.info("SOLVER.CLIP_GRADIENTS.CLIP_VALUE is 0: gradients are not clipped")
