"""Convert the norms of a timm model and keep its activations.

timm's BatchNormAct2d is a batch norm that also applies the activation behind it. The converters of
torch and of Detectron2 silently replace it by a plain norm without the activation.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from torch import nn

from panoptic_ext.errors import check_known

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
