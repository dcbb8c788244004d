"""Norms of a timm model converted in a way that keeps its activations.

timm's BatchNormAct2d is a batch norm that holds the activation behind it: the converters of torch
and of Detectron2 put a plain norm in its place, which calls no activation, without a word.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from torch import nn

from panoptic_ext.errors import check_known

__all__ = ["TIMM_NORMS", "convert_norms"]

_GROUPS = 32


def convert_norms(net: nn.Module, norm: str) -> nn.Module:
    """Replace every batch norm in `net`; activations and drop layers stay.

    Args:
        net: a model of timm; changed in place.
        norm: "" leaves it; "BN" checks nothing either, as timm's models have batch norm; "SyncBN"
            takes statistics over all workers; "FrozenBN" fixes statistics and weights, which is
            for pretrained ones; "GN" is a group norm with 32 groups, or fewer where 32 does not
            divide the channels, from fresh weights 1 and biases 0.

    Returns:
        `net`, or what replaces it if it is itself a norm.

    Raises:
        ConfigError: unknown norm.
    """
    check_known("MODEL.TIMM.NORM", norm, TIMM_NORMS)
    return TIMM_NORMS[norm](net)


def _kept(net: nn.Module) -> nn.Module:
    return net


def _synchronized(net: nn.Module) -> nn.Module:
    from timm.layers import convert_sync_batchnorm

    return convert_sync_batchnorm(net)


def _frozen(net: nn.Module) -> nn.Module:
    from timm.layers import freeze_batch_norm_2d

    return freeze_batch_norm_2d(net)


def _grouped(net: nn.Module) -> nn.Module:
    if isinstance(net, (nn.BatchNorm2d, nn.SyncBatchNorm)):
        return _group_norm_like(net)
    for name, child in net.named_children():
        setattr(net, name, _grouped(child))
    return net


def _group_norm_like(norm: Any) -> nn.Module:
    from timm.layers import GroupNormAct

    channels = norm.num_features
    make = partial(nn.GroupNorm if not hasattr(norm, "act") else GroupNormAct, eps=norm.eps)
    new = make(num_channels=channels, num_groups=math.gcd(channels, _GROUPS))
    if hasattr(norm, "act"):
        new.act, new.drop = norm.act, norm.drop
    return new.to(norm.weight.device).train(norm.training)


TIMM_NORMS = {
    "": _kept,
    "BN": _kept,
    "SyncBN": _synchronized,
    "FrozenBN": _frozen,
    "GN": _grouped,
}
