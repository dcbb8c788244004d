"""Counting what a call asks of the device: operations, and values that the host waits for.

A GPU runs what the host launches, some 5 microseconds each, and the host waits where it needs a
value. Neither shows in the time on a CPU, so tests count them there.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["OperationCounts"]

_VIEWS = {
    "_unsafe_view", "alias", "as_strided", "detach", "expand", "permute", "select", "slice",
    "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view",
}  # fmt: skip
# Their result's size or value has to be known on the host.
_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal"}


class OperationCounts(TorchDispatchMode):
    """Context that counts ATen operations by name, those of autograd included.

    Attributes:
        counts: of each operation that is no view.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name not in _VIEWS:
            self.counts[name] += 1
            boolean = name == "index" and any(
                index is not None and index.dtype.is_floating_point is False
                and str(index.dtype) == "torch.bool"
                for index in args[1]
            )  # fmt: skip
            self.counts["index by bool"] += boolean
        return func(*args, **(kwargs or {}))

    @property
    def operations(self) -> int:
        """Operations that are no views."""
        return sum(n for name, n in self.counts.items() if name != "index by bool")

    @property
    def waits(self) -> dict[str, int]:
        """Operations for which the host waits; `cpu()` and `tolist()` have to be counted apart."""
        return {n: c for n, c in self.counts.items() if c and n in {*_WAITS, "index by bool"}}
