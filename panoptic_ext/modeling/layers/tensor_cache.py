"""Tensors that are computed from parameters, kept until a parameter changes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

__all__ = ["TensorCache"]


class TensorCache:
    """The last few results of a function of parameters and of a key, such as the image's size.

    Nothing is kept while a gradient has to flow into a parameter. Call `clear` where parameters may
    change without a new version, such as by writing through `.data`; see `FoldedConv2d`.
    """

    def __init__(self, most: int = 8) -> None:
        """Args:
        most: number of results that are kept.
        """
        self.most = most
        self._results: OrderedDict[Hashable, tuple[Tensor, list[Tensor]]] = OrderedDict()

    def get(self, key: Hashable, sources: Sequence[Tensor], make: Callable[[], Tensor]) -> Tensor:
        """The result for a key: shared with other callers, so do not write to it.

        Args:
            key: all that the result depends on beside `sources`.
            sources: tensors, such as parameters, that it depends on.
            make: computes it.
        """
        trained = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in sources)
        # An inference tensor has no version, so that its changes cannot be noticed.
        if trained or any(t.is_inference() for t in sources) or torch.compiler.is_compiling():
            return make()
        state = (key, *((t.data_ptr(), t._version, t.dtype, t.device) for t in sources))
        if state not in self._results:
            # A tensor that is made in inference mode could not take part in a later training step.
            with torch.inference_mode(False), torch.no_grad():
                # The sources' memory is kept as well: no other parameter then gets their address.
                self._results[state] = make(), [t.detach() for t in sources]
            if len(self._results) > self.most:
                self._results.popitem(last=False)
        self._results.move_to_end(state)
        return self._results[state][0]

    def clear(self) -> None:
        """Forget all results."""
        self._results.clear()
