"""Convert the norms of a timm model and keep its activations.

timm's BatchNormAct2d is a batch norm that also applies the activation behind it. The converters of
torch and of Detectron2 silently replace it by a plain norm without the activation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from panoptic_ext.errors import check_known
from panoptic_ext.modeling.backbone.timm_folding import FrozenNormAct, fold_frozen_norms

__all__ = ["TIMM_NORMS", "convert_norms"]

_MAX_GROUPS = 32


def convert_norms(net: nn.Module, norm: str) -> nn.Module:
    """Replace every batch norm in `net`; activations and drop layers stay.

    Args:
        net: a model of timm; changed in place.
        norm: "" and "BN" leave the batch norm of timm's models as it is; "SyncBN" computes
            statistics over all workers; "FrozenBN" fixes statistics and weights, for pretrained
            models; "GN" is a group norm with 32 groups, or fewer where 32 does not divide the
            channels, with new weights 1 and biases 0.

    Returns:
        `net`, or its replacement if it is itself a norm.

    Raises:
        ConfigError: unknown norm.
    """
    check_known("MODEL.TIMM.NORM", norm, TIMM_NORMS)
    return TIMM_NORMS[norm](net)


def _unchanged(net: nn.Module) -> nn.Module:
    return net


def _synchronized(net: nn.Module) -> nn.Module:
    from timm.layers import convert_sync_batchnorm

    return convert_sync_batchnorm(net)


def _frozen(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        return fold_frozen_norms(_replaced(net, FrozenNormAct))


def _grouped(net: nn.Module) -> nn.Module:
    return _replaced(net, _group_norm_like)


def _replaced(net: nn.Module, make: Callable[[Any], nn.Module]) -> nn.Module:
    if isinstance(net, (nn.BatchNorm2d, nn.SyncBatchNorm)):
        return make(net)
    for name, child in net.named_children():
        setattr(net, name, _replaced(child, make))
    return net


def _group_norm_like(norm: Any) -> nn.Module:
    from timm.layers import GroupNormAct

    channels = norm.num_features
    make = partial(nn.GroupNorm if not hasattr(norm, "act") else GroupNormAct, eps=norm.eps)
    new = make(num_channels=channels, num_groups=math.gcd(channels, _MAX_GROUPS))
    if hasattr(norm, "act"):
        new.act, new.drop = norm.act, norm.drop
    return new.to(norm.weight.device).train(norm.training)


TIMM_NORMS = {
    "": _unchanged,
    "BN": _unchanged,
    "SyncBN": _synchronized,
    "FrozenBN": _frozen,
    "GN": _grouped,
}
