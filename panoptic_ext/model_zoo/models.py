"""Models of the zoo, built and with their weights."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.engine.run_config import without_pretrained
from panoptic_ext.model_zoo.configs import get_config

__all__ = ["build_with_weights", "get"]


def get(name: str, trained: bool = True, device: str | None = None) -> nn.Module:
    """Build the model of an entry and load its weights, as `detectron2.model_zoo.get` does.

    Args:
        name: of an entry.
        trained: False loads the weights that the config's own training began with, such as a
            pretrained backbone.
        device: such as "cpu"; None takes the config's, or the CPU where there is no CUDA.

    Returns:
        The model in training mode, as Detectron2's function gives it; call `eval()` to predict.

    Raises:
        ConfigError: there is no such entry.
        CheckpointError, DownloadError: the weights cannot be had or do not fit.
    """
    return build_with_weights(get_config(name, trained=trained), strict=trained, device=device)


def build_with_weights(cfg: CfgNode, *, strict: bool, device: str | None = None) -> nn.Module:
    """Build a model and load MODEL.WEIGHTS; "" loads nothing.

    Args:
        cfg: not frozen; its device may be changed.
        strict: whether the weights must be those of the whole model.
        device: see `get`.
    """
    if device is None and not torch.cuda.is_available():
        device = "cpu"
    if device is not None:
        cfg.MODEL.DEVICE = device
    if not cfg.MODEL.WEIGHTS:
        return build_model(cfg)
    model = build_model(without_pretrained(cfg) if strict else cfg)
    checkpointer = Checkpointer(model, save_to_disk=False, allow_pickle=cfg.MODEL.ALLOW_PICKLE)
    checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[], strict=strict)
    return model
