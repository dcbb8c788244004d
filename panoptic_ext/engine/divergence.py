"""Recognise errors that a forward pass raises because its numbers became infinite or NaN.

Detectron2's proposals, torch's sampling and decompositions, and scipy's matching raise exceptions
of their own then, before there is a loss to check.
"""

from __future__ import annotations

import itertools
import re

import torch
from torch import Tensor, nn

from panoptic_ext.errors import NonFiniteLossError, PanopticExtError, shortened

__all__ = ["divergence_of", "stand_in_losses"]

_POSSIBLE_ERRORS = (ArithmeticError, AssertionError, LookupError, RuntimeError, ValueError)
_WORDS_FOR_NONFINITE = re.compile(
    r"\b(inf|nan|infinite|infinity|non-?finite|not finite|nans|infs|invalid numeric entries"
    r"|infeasible)\b",
    re.IGNORECASE,
)


def divergence_of(error: Exception, model: nn.Module) -> str:
    """The message of an error that numbers caused which are not finite, or "" for other errors.

    These are the cause if the error's message says so, or if a weight of the model is infinite or
    NaN.

    Args:
        error: raised by the model's forward pass.
        model: the model, unchanged since.

    Returns:
        The first sentence of the error, or "".
    """
    if isinstance(error, PanopticExtError) and not isinstance(error, NonFiniteLossError):
        return ""
    says_so = isinstance(error, FloatingPointError) or (
        isinstance(error, _POSSIBLE_ERRORS) and _WORDS_FOR_NONFINITE.search(str(error)) is not None
    )
    # The weights are read last, because that copies a number from the device for each of them.
    if not says_so and not (isinstance(error, _POSSIBLE_ERRORS) and _has_bad_weights(model)):
        return ""
    sentence = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
    return shortened(sentence, 300) or type(error).__name__


def stand_in_losses(model: nn.Module, data: object, names: list[str]) -> dict[str, Tensor]:
    """Losses of NaN in place of those of a forward pass that failed on this worker.

    The other workers are about to average their losses and gradients. With the stand-in losses
    this worker takes part, and all workers get the same losses instead of waiting for ever.

    Args:
        model: the model, wrapped in DistributedDataParallel or not.
        data: the batch.
        names: names of the model's losses.

    Returns:
        name -> scalar NaN that depends on every trained parameter.
    """
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    assert isinstance(inner, nn.Module)
    trained = [p for p in inner.parameters() if p.requires_grad]
    # The sum depends on every parameter, because the gradients of all of them are averaged.
    total = torch.stack([p.sum().float() for p in trained]).sum() * float("nan")
    # The wrapper itself must run its forward pass: that prepares its averaging of gradients.
    inner.forward = lambda *_: dict.fromkeys(names, total)
    try:
        return model(data)  # type: ignore[no-any-return]
    finally:
        del inner.forward


def _has_bad_weights(model: nn.Module) -> bool:
    # Other buffers, such as masks, may be infinite on purpose.
    statistics = (
        b for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))
    )
    try:
        return any(
            not bool(value.isfinite().all())
            for value in itertools.chain(model.parameters(), statistics)
        )
    except RuntimeError:  # no number can be read from a CUDA device that has failed
        return False
