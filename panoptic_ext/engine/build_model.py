"""Build the model of a config, and wrap it for several workers; errors name the config's keys."""

from __future__ import annotations

import logging

import torch
from detectron2.config import CfgNode
from detectron2.engine import create_ddp_model
from detectron2.modeling import build_model as build_detectron2_model
from detectron2.utils import comm
from torch import nn

from panoptic_ext.engine.freezing import freeze
from panoptic_ext.errors import ConfigError

__all__ = ["build_model", "distributed_model"]

logger = logging.getLogger(__name__)

_FILE_ONLY = {"is_for_file_only": True}  # see `trainer.is_for_console`


def build_model(cfg: CfgNode) -> nn.Module:
    """Detectron2's build_model, and what the config says is frozen.

    Raises:
        ConfigError: a key names a feature or a part that the model does not have, or keys
            contradict each other.
    """
    try:
        model = build_detectron2_model(cfg)
    except KeyError as error:
        key = _key_of_feature(cfg, error)
        if key is None:
            raise
        name = cfg.MODEL.BACKBONE.NAME
        block = "SIMPLE_FEATURE_PYRAMID" if "plain_vit" in name else "RESNETS"
        raise ConfigError(
            f"{key} names the feature {error}, which the backbone does not give; "
            f"MODEL.BACKBONE.NAME = {name}, MODEL.{block}.OUT_FEATURES = "
            f"{cfg.MODEL[block].OUT_FEATURES}"
        ) from error
    except AssertionError as error:
        if "MODEL." not in str(error):
            raise
        raise ConfigError(f"the model cannot be built: {error}") from error
    freeze(model, cfg)
    number = sum(parameter.numel() for parameter in model.parameters())
    logger.info("Model: %s, %s parameters", type(model).__name__, f"{number:,}")
    logger.info("Model:\n%s", model, extra=_FILE_ONLY)
    return model


def distributed_model(model: nn.Module) -> nn.Module:
    """The model, wrapped in DistributedDataParallel if there are several workers."""
    on_cuda = next(model.parameters()).is_cuda
    if comm.get_world_size() > 1 and not on_cuda:
        _check_norms_for_cpu(model)
    # Buffers are not broadcast at every step: `share_buffers` does it before an evaluation.
    return create_ddp_model(
        model,
        broadcast_buffers=False,
        device_ids=[torch.cuda.current_device()] if on_cuda else None,
        find_unused_parameters=getattr(model, "find_unused_parameters", False),
    )


def _check_norms_for_cpu(model: nn.Module) -> None:
    """Raise ConfigError for SyncBN, which several workers cannot train on the CPU."""
    synchronised = [n for n, m in model.named_modules() if isinstance(m, nn.SyncBatchNorm)]
    if synchronised:
        raise ConfigError(
            f"{len(synchronised)} norms are SyncBN ({synchronised[0]} is the first), which "
            "several workers can train on CUDA alone; on the CPU start one worker, or set the "
            "model's NORM keys (such as MODEL.RESNETS.NORM) to BN or FrozenBN"
        )


def _key_of_feature(cfg: CfgNode, error: KeyError) -> str | None:
    """The config key whose list of features holds the name that a KeyError reports."""
    pending = [("MODEL", cfg.MODEL)]
    while pending:
        prefix, node = pending.pop()
        for name, value in node.items():
            key = f"{prefix}.{name}"
            if isinstance(value, CfgNode):
                pending.append((key, value))
            elif name.endswith("FEATURES") and error.args[0] in value:
                return key
    return None
