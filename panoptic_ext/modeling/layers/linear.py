"""Linear layers that use the faster of two libraries.

On a CPU, torch computes matrix products with its BLAS and convolutions with oneDNN. MKL, the BLAS
of its usual builds, uses half of the vector width on processors that are not Intel's. A 1x1
convolution over the rows is the same product. It took 0.44 of the time on 2 threads of an AMD EPYC
(forward and backward); on Intel's processors both are equally fast. With one thread, torch computes
small convolutions with BLAS, too.

Shapes: R rows (all leading dimensions), I inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Linear", "linear", "use_fast_linears"]

_LEAST_ROWS = 64  # with fewer rows, preparing the convolution costs what it saves


class Linear(nn.Linear):
    """`nn.Linear` through `linear`, under the same names."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return linear(x, self.weight, self.bias)


def use_fast_linears(module: nn.Module) -> None:
    """Let each `nn.Linear` in a module of another package compute as `Linear`, under the same name.

    Subclasses of `nn.Linear` stay as they are.
    """
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Linear


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """As `torch.nn.functional.linear`, but maybe with sums in another order.

    Args:
        x: (..., I).
        weight: (O, I).
        bias: (O,).
        relu: whether to set negative results to 0.

    Returns:
        (..., O).
    """
    if not _by_convolution(x):
        out = F.linear(x, weight, bias)
        return F.relu(out, inplace=True) if relu else out
    pixels = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, I, 1, R), channels last
    out = F.conv2d(pixels, weight[:, :, None, None], bias)
    out = F.relu(out, inplace=True) if relu else out
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])


def _by_convolution(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.numel() >= _LEAST_ROWS * x.shape[-1]
        and not torch.compiler.is_compiling()
        and torch.get_num_threads() > 1
        and torch.backends.mkldnn.is_available()
    )
