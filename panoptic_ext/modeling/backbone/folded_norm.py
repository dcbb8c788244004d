"""Normalization with fixed statistics, folded into the convolution in front of it.

conv(x, W) * s + b = conv(x, s W) + b: a pass over each feature map is saved, and with weights in
channels_last layout the convolutions of a CPU run on blocks of channels. Names in the state dict,
parameters and gradients stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FoldedConv2d", "fold_norms"]

_FOLDABLE = (FrozenBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm)


def fold_norms(module: nn.Module) -> nn.Module:
    """Make every Detectron2 convolution in `module` fold its norm wherever that is exact.

    Args:
        module: changed in place; layers whose norm is no batch norm are left alone.

    Returns:
        `module`.
    """
    for layer in module.modules():
        if type(layer) is Conv2d and isinstance(layer.norm, _FOLDABLE):
            layer.__class__ = FoldedConv2d
            layer.folded = layer.frozen = None
    return module


class FoldedConv2d(Conv2d):
    """Detectron2's Conv2d for a norm that multiplies and adds constants.

    A frozen norm is folded always; a batch norm in evaluation, where no gradient is asked for.
    There the folded weights are kept until a parameter or a statistic changes, a state dict is
    loaded, or `train()` or `eval()` is called, of this layer or of the model around it. In training
    what a frozen norm multiplies and adds is kept as long: a step then costs one product a layer.

    Call `model.eval()` after writing through `.data`, as codes that average weights do
    (`parameter.data.copy_(average)`): torch counts no version there, so that nothing shows the
    change. Writes to the parameter itself (`with torch.no_grad(): parameter.copy_(average)`) are
    seen without it. Inference tensors have no version at all: they are folded in every call.
    """

    folded: tuple[tuple[Any, ...], Tensor, Tensor] | None
    frozen: tuple[tuple[Any, ...], Tensor, Tensor] | None

    def train(self, mode: bool = True) -> FoldedConv2d:
        """As `nn.Module.train`, and so `eval`; forgets the folded weights."""
        self.folded = self.frozen = None
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.folded = self.frozen = None
        super()._load_from_state_dict(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """As Detectron2's Conv2d: (B, C, H, W) -> convolution, norm, activation."""
        frozen = isinstance(self.norm, FrozenBatchNorm2d)
        if not torch.is_grad_enabled() and (frozen or not self.norm.training):
            weight, bias = self._kept(x)
        elif frozen:
            weight, bias = self._fold()
        else:
            return super().forward(x)
        x = F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return x if self.activation is None else self.activation(x)

    def _fold(self) -> tuple[Tensor, Tensor]:
        norm = self.norm
        if self.bias is None and isinstance(norm, FrozenBatchNorm2d):
            scale, bias = self._frozen_terms()
            return self.weight * scale, bias
        scale = (norm.running_var + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight
        shift = -norm.running_mean if self.bias is None else self.bias - norm.running_mean
        bias = shift * scale if norm.bias is None else torch.addcmul(norm.bias, shift, scale)
        return self.weight * scale[:, None, None, None], bias

    def _frozen_terms(self) -> tuple[Tensor, Tensor]:
        """What the frozen norm multiplies (O, 1, 1, 1) and adds (O,)."""
        norm = self.norm
        tensors = [norm.weight, norm.bias, norm.running_mean, norm.running_var]
        if not any(t.is_inference() for t in tensors):
            state = tuple((t.data_ptr(), t._version, t.dtype) for t in tensors)
            if self.frozen is None or self.frozen[0] != state:
                with torch.inference_mode(False), torch.no_grad():
                    self.frozen = (state, *_terms(norm))
            return self.frozen[1:]
        return _terms(norm)

    def _kept(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Folded weights in the type in which they are used."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        sources = [self.weight, self.bias, *self.norm.parameters(), *self.norm.buffers()]
        tensors = [t for t in sources if t is not None]
        if any(t.is_inference() for t in tensors):
            return self._in_layout(dtype, kind)
        state = (dtype, *((t.data_ptr(), t._version) for t in tensors))
        if self.folded is None or self.folded[0] != state:
            self.folded = (state, *self._in_layout(dtype, kind))
        return self.folded[1:]

    def _in_layout(self, dtype: torch.dtype, kind: str) -> tuple[Tensor, Tensor]:
        """Folded weights of a type, channels_last; `kind` is the type of the device."""
        with torch.autocast(kind, enabled=False):
            weight, bias = (t.detach().to(dtype) for t in self._fold())
        return weight.contiguous(memory_format=torch.channels_last), bias


def _terms(norm: FrozenBatchNorm2d) -> tuple[Tensor, Tensor]:
    scale = (norm.running_var + norm.eps).rsqrt() * norm.weight
    return scale[:, None, None, None], torch.addcmul(norm.bias, norm.running_mean, scale, value=-1)
