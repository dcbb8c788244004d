"""Frozen norms of timm's models, folded into the convolutions in front of them.

In timm's models convolution and norm are two modules, and the norm often has the activation. Which
norm follows which convolution is read from a trace of the model by torch.fx, so that a norm is
folded only where it alone gets the convolution's output. Names in the state dict do not change.
"""

from __future__ import annotations

import logging
from typing import Any

from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, fx, nn
from torch.nn import functional as F

from panoptic_ext.modeling.backbone.folded_norm import FoldsNorm

__all__ = ["FrozenNormAct", "fold_frozen_norms"]

logger = logging.getLogger(__name__)


class FrozenNormAct(FrozenBatchNorm2d):
    """A batch norm whose statistics and weights are constants, and the activation behind it.

    Attributes:
        is_folded: whether the convolution in front computes it, so that the activation is left.
    """

    def __init__(self, norm: Any) -> None:
        """Args:
        norm: a batch norm of torch or timm, whose weights, dropout and activation are taken.
        """
        super().__init__(norm.num_features, norm.eps)
        if norm.affine:
            self.weight.copy_(norm.weight.detach())
            self.bias.copy_(norm.bias.detach())
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.drop = getattr(norm, "drop", nn.Identity())
        self.act = _act_that_keeps_its_input(getattr(norm, "act", nn.Identity()))
        self.is_folded = False
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> norm, dropout and activation."""
        return self.act(self.drop(x if self.is_folded else super().forward(x)))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # of a batch norm
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __repr__(self) -> str:
        return f"FrozenNormAct({self.num_features}, eps={self.eps}, act={self.act})"


class _FoldedConv(FoldsNorm, nn.Conv2d):
    """torch's Conv2d, or timm's with padding as in TensorFlow ("same"); see `FoldsNorm`.

    Attributes:
        pads_same: whether the padding depends on the size of the input, as in timm's Conv2dSame.
    """

    pads_same: bool
    norm_behind: tuple[FrozenNormAct]  # in a tuple, so that it is no module of this one

    @property
    def norm_to_fold(self) -> FrozenNormAct:
        """The norm that follows."""
        return self.norm_behind[0]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> convolution and norm."""
        weights = self.folded_weights(x)
        assert weights is not None, "a frozen norm is folded always"
        if self.pads_same:
            return _same_conv2d(x, *weights, self)
        padding = self.padding
        return F.conv2d(x, *weights, self.stride, padding, self.dilation, self.groups)


def fold_frozen_norms(net: nn.Module) -> nn.Module:
    """Fold every FrozenNormAct that directly follows a convolution, in place; returns `net`."""
    if any(isinstance(m, FrozenNormAct) for m in net.modules()):
        for conv, norm in _pairs(net):
            pads_same = type(conv) is not nn.Conv2d
            conv.__class__ = _FoldedConv
            conv.folded = conv.frozen = None
            conv.norm_behind, conv.pads_same, norm.is_folded = (norm,), pads_same, True
    return net


class _Tracer(fx.Tracer):
    """Leaves convolutions and norms whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, (nn.Conv2d, FrozenBatchNorm2d))
        return whole or super().is_leaf_module(m, module_qualified_name)


def _pairs(net: nn.Module) -> list[tuple[Any, FrozenNormAct]]:
    """Convolutions and the norms that alone get their outputs; both run once."""
    try:
        graph = _Tracer().trace(net)
    except Exception as error:  # a model's forward may raise anything when it is traced
        logger.debug("%s cannot be traced, its norms are not folded: %s", type(net).__name__, error)
        return []
    modules = dict(net.named_modules())
    calls = [modules[str(node.target)] for node in graph.nodes if node.op == "call_module"]
    pairs = []
    for node in graph.nodes:
        users = list(node.users)
        if node.op != "call_module" or len(users) != 1 or users[0].op != "call_module":
            continue
        conv, norm = modules[str(node.target)], modules[str(users[0].target)]
        once = calls.count(conv) == 1 == calls.count(norm)
        if once and _is_plain(conv) and isinstance(norm, FrozenNormAct):
            pairs.append((conv, norm))
    return pairs


def _is_plain(module: nn.Module) -> bool:
    """Whether it is a convolution that `_FoldedConv` can stand in for."""
    is_known = type(module) is nn.Conv2d or type(module).__name__ == "Conv2dSame"
    # The type again for mypy, which does not see it through the name.
    return is_known and isinstance(module, nn.Conv2d) and module.padding_mode == "zeros"


def _same_conv2d(x: Tensor, weight: Tensor, bias: Tensor, conv: nn.Conv2d) -> Tensor:
    """A convolution padded as TensorFlow does, with one row or column more at the end if need be.

    torch pads both sides alike. Padding by `stride` more at the beginning adds one output there,
    which is left out again: that spares the copy of a padded input.
    """
    pads, cuts = [], []
    for axis in (0, 1):
        size, step = x.shape[2 + axis], conv.stride[axis]
        extent = conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
        outputs = -(-size // step)
        total = max(0, (outputs - 1) * step + extent - size)
        uneven = total % 2
        pads.append(total // 2 + step * uneven)
        cuts.append(slice(uneven, uneven + outputs))
    y = F.conv2d(x, weight, bias, conv.stride, (pads[0], pads[1]), conv.dilation, conv.groups)
    return y[:, :, cuts[0], cuts[1]]


def _act_that_keeps_its_input(act: nn.Module) -> nn.Module:
    """ReLU6 that does not work in place: in place, autograd copies its input first."""
    return nn.ReLU6() if isinstance(act, nn.ReLU6) else act
