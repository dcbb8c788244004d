"""Normalization with fixed statistics, folded into the convolution in front of it.

conv(x, W) * s + b = conv(x, s W) + b. This saves a pass over each feature map, and with weights in
channels_last layout the convolutions of a CPU process blocks of channels. Names in the state dict,
parameters and gradients do not change.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FoldedConv2d", "FoldsNorm", "fold_norms"]

_FOLDABLE = (FrozenBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm)


def fold_norms(module: nn.Module) -> nn.Module:
    """Make every Detectron2 convolution in `module` fold its norm wherever that is exact.

    Args:
        module: changed in place; layers whose norm is not a batch norm stay as they are.

    Returns:
        `module`.
    """
    for layer in module.modules():
        # Not `isinstance`: a subclass of Conv2d may compute something else. Assigning the class
        # keeps parameters, hooks and names.
        if type(layer) is Conv2d and isinstance(layer.norm, _FOLDABLE):
            layer.__class__ = FoldedConv2d
            layer.folded = layer.frozen = None
    return module


class FoldsNorm(nn.Module):
    """A convolution that folds a norm which multiplies and adds constants.

    A frozen norm is always folded; a batch norm is folded in evaluation mode where no parameter
    needs a gradient.

    Where none does, the folded weights are cached until a parameter or a statistic changes, a
    state dict is loaded, or `train()` or `eval()` is called on this layer or on a model around it.
    In training, the scale and shift of a frozen norm are cached in the same way, so that a step
    costs one product per layer.

    Call `model.eval()` after writing through `.data`, as weight-averaging code does
    (`parameter.data.copy_(average)`): such writes do not change the tensor's version, so that the
    cache cannot detect them. It does detect writes to the parameter itself (`with torch.no_grad():
    parameter.copy_(average)`). Inference tensors have no version: they are folded in every call.
    """

    weight: Tensor
    bias: Tensor | None
    folded: tuple[tuple[Any, ...], Tensor, Tensor] | None
    frozen: tuple[tuple[Any, ...], Tensor, Tensor] | None

    @property
    def norm_to_fold(self) -> Any:
        """The norm, which has the tensors of a batch norm."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> FoldsNorm:
        """As `nn.Module.train`, which `eval` calls, too; empties the cache."""
        self.folded = self.frozen = None
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.folded = self.frozen = None
        super()._load_from_state_dict(*args, **kwargs)

    def folded_weights(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Weight and bias with the norm; None where it has to be computed by itself.

        Args:
            x: the input, whose dtype the convolution computes in without autocast.
        """
        norm = self.norm_to_fold
        frozen = isinstance(norm, FrozenBatchNorm2d)
        if (frozen or not norm.training) and not self._needs_gradient():
            return self._cached_weights(x)
        return self._fold() if frozen else None

    def _needs_gradient(self) -> bool:
        return torch.is_grad_enabled() and any(
            p.requires_grad for p in (*self.parameters(), *self.norm_to_fold.parameters())
        )

    def _fold(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the convolution with its norm; gradients flow through both."""
        norm = self.norm_to_fold
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
        """The scale (O, 1, 1, 1) and the shift (O,) of the frozen norm, cached."""
        norm = self.norm_to_fold
        tensors = [norm.weight, norm.bias, norm.running_mean, norm.running_var]
        if not any(t.is_inference() for t in tensors):
            state = tuple((t.data_ptr(), t._version, t.dtype) for t in tensors)
            if self.frozen is None or self.frozen[0] != state:
                # Inference tensors in the cache could not take part in a later training step.
                with torch.inference_mode(False), torch.no_grad():
                    self.frozen = (state, *_scale_and_shift(norm))
            return self.frozen[1:]
        return _scale_and_shift(norm)

    def _cached_weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Folded weights in the type that the convolution computes in."""
        kind, norm = x.device.type, self.norm_to_fold
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        sources = [self.weight, self.bias, *norm.parameters(), *norm.buffers()]
        tensors = [t for t in sources if t is not None]
        if any(t.is_inference() for t in tensors):
            return self._in_layout(dtype, kind)
        state = (dtype, *((t.data_ptr(), t._version) for t in tensors))
        if self.folded is None or self.folded[0] != state:
            self.folded = (state, *self._in_layout(dtype, kind))
        return self.folded[1:]

    def _in_layout(self, dtype: torch.dtype, kind: str) -> tuple[Tensor, Tensor]:
        """Folded weights of a dtype in channels_last layout; `kind` is the type of the device."""
        # Folded in the type of the parameters, then converted, so that it is rounded once.
        with torch.autocast(kind, enabled=False):
            weight, bias = (t.detach().to(dtype) for t in self._fold())
        return weight.contiguous(memory_format=torch.channels_last), bias


class FoldedConv2d(FoldsNorm, Conv2d):
    """Detectron2's Conv2d; see `FoldsNorm`."""

    @property
    def norm_to_fold(self) -> Any:
        """The layer's own norm."""
        return self.norm

    def forward(self, x: Tensor) -> Tensor:
        """As Detectron2's Conv2d: (B, C, H, W) -> convolution, norm, activation."""
        weights = self.folded_weights(x)
        if weights is None:
            return super().forward(x)
        x = F.conv2d(x, *weights, self.stride, self.padding, self.dilation, self.groups)
        return x if self.activation is None else self.activation(x)


def _scale_and_shift(norm: FrozenBatchNorm2d) -> tuple[Tensor, Tensor]:
    scale = (norm.running_var + norm.eps).rsqrt() * norm.weight
    return scale[:, None, None, None], torch.addcmul(norm.bias, norm.running_mean, scale, value=-1)
