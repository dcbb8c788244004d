"""Counting what a call asks of a device: operations, and values that the host waits for.

A GPU runs what the host launches, some 5 microseconds each, and the host waits where it needs a
value. Neither shows in the time on a CPU, so tests count them there.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["OperationCounts"]

_VIEWS = {
    "_unsafe_view", "alias", "as_strided", "detach", "expand", "lift_fresh", "permute", "select",
    "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze",
    "view",
}  # fmt: skip
# Operations whose result's size or value the host has to know.
_WAITS = {"_local_scalar_dense", "_unique2", "equal", "masked_select", "nonzero", "unique_dim"}
# Methods that copy to the host. On a CPU they are no operation, or none that a mode sees.
_COPIES = {"cpu", "tolist", "__bool__", "__int__", "__float__", "__index__"}


class OperationCounts(TorchDispatchMode):
    """Context that counts the ATen operations below autograd, its own ones included, by name.

    Attributes:
        by_name: how often each was called; views are left out.
        copies: methods that copy to the host, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self._calls = _Calls(self.copies)

    def __enter__(self) -> OperationCounts:
        self._calls.__enter__()
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._calls.__exit__(*raised)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name.startswith("index") and any(_is_mask(index) for index in _indices(args)):
            name = "nonzero"  # which a boolean index needs
        if name not in _VIEWS:
            self.by_name[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def operations(self) -> int:
        """Operations that are no views."""
        return sum(self.by_name.values())

    @property
    def waits(self) -> dict[str, int]:
        """Operations for which the host waits, by name; `copies` are apart."""
        return {name: count for name, count in self.by_name.items() if name in _WAITS}


class _Calls(TorchFunctionMode):
    def __init__(self, copies: Counter[str]) -> None:
        super().__init__()
        self._copies = copies

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _COPIES:
            self._copies[name] += 1
        return func(*args, **(kwargs or {}))


def _indices(args: tuple) -> list:
    return args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else []


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype == torch.bool
