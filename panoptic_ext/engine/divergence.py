"""Errors that a forward pass raises because numbers in it became infinite or NaN.

Detectron2's proposals, torch's sampling and decompositions, and scipy's matching have exceptions of
their own for it, raised before there is a loss to look at.
"""

from __future__ import annotations

import itertools
import re

import torch
from torch import Tensor, nn

from panoptic_ext.errors import NonFiniteLossError, PanopticExtError, shortened

__all__ = ["divergence_of", "stand_in_losses"]

_KINDS = (ArithmeticError, AssertionError, LookupError, RuntimeError, ValueError)
_WORDS = re.compile(
    r"\b(inf|nan|infinite|infinity|non-?finite|not finite|nans|infs|invalid numeric entries"
    r"|infeasible)\b",
    re.IGNORECASE,
)


def divergence_of(error: Exception, model: nn.Module) -> str:
    """Whether numbers that are not finite made the model raise, and what it said of them.

    That is so where the error says it, or where a weight of the model is infinite or NaN, whatever
    the error says.

    Args:
        error: out of the model's forward pass.
        model: as it was then.

    Returns:
        The first sentence of the error; "" where it has another cause.
    """
    if isinstance(error, PanopticExtError) and not isinstance(error, NonFiniteLossError):
        return ""
    said = isinstance(error, FloatingPointError) or (
        isinstance(error, _KINDS) and _WORDS.search(str(error)) is not None
    )
    if not said and not (isinstance(error, _KINDS) and _has_bad_weights(model)):
        return ""
    sentence = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
    return shortened(sentence, 300) or type(error).__name__


def stand_in_losses(model: nn.Module, data: object, names: list[str]) -> dict[str, Tensor]:
    """Losses that are NaN, by way of a wrapped model whose own forward pass failed.

    The other workers are about to average losses and gradients. With these, this worker takes part
    in it, and all of them find the same losses instead of waiting for ever.

    Args:
        model: in DistributedDataParallel.
        data: the batch.
        names: of the losses that the model gives.
    """
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    assert isinstance(inner, nn.Module)
    trained = [p for p in inner.parameters() if p.requires_grad]
    # Reaches every parameter, as the gradients of all of them are averaged.
    total = torch.stack([p.sum().float() for p in trained]).sum() * float("nan")
    inner.forward = lambda *_: dict.fromkeys(names, total)
    try:
        return model(data)  # type: ignore[no-any-return]
    finally:
        del inner.forward


def _has_bad_weights(model: nn.Module) -> bool:
    # Buffers may be infinite on purpose, as masks are, but not the statistics of a norm.
    statistics = (
        b for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))
    )
    try:
        return any(
            not bool(value.isfinite().all())
            for value in itertools.chain(model.parameters(), statistics)
        )
    except RuntimeError:  # a CUDA device that failed answers nothing
        return False
