"""A pretended CUDA device: tensors of the CPU that say they are on "cuda", and what would wait.

No machine of this project has a GPU, so that the branches for CUDA would never run, and nothing
would notice a host that waits for the device. Under `PretendedCuda` both are seen on a CPU:

- A tensor made on or moved to "cuda" has `device` "cuda:99" and `is_cuda` True; all that comes from
  it, too. Code takes its branches for CUDA.
- As on CUDA, `numpy()` and operations that mix the devices raise.
- Every call for which the host would wait is noted with the place that made it: copies to the host,
  values that Python reads, sizes that depend on values, copies of memory that is not page-locked.

The numbers are the CPU's. What C++ does below one call of Python is not seen, and neither are
kernels, streams and autocast of CUDA: the tests marked gpu are for these.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_flatten, tree_map

__all__ = ["DeviceTensor", "PretendedCuda", "to_pretended"]

# No real device has this number: what is cached by device is never taken for a real one's.
CUDA = torch.device("cuda:99")
_PACKAGES = ("panoptic_ext", "detectron2", "timm", "torchvision", "transformers")
# Methods that bring a value or a size to the host.
_READS = {
    "__bool__", "__complex__", "__contains__", "__float__", "__index__", "__int__", "allclose",
    "argwhere", "bincount", "equal", "is_nonzero", "item", "masked_select", "nonzero", "tolist",
    "unique", "unique_consecutive",
}  # fmt: skip
_TO_HOST = {"cpu", "numpy"}
_MAKERS_FROM_HOST = {"tensor", "as_tensor", "asarray", "from_numpy", "new_tensor"}
# Attributes and methods that may see tensors of both devices.
_HARMLESS = {"__set__", "copy_", "to", "type", "set_"}


class DeviceTensor(torch.Tensor):
    """A tensor that says it is on CUDA; its values are in the memory of the CPU."""

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)


class PretendedCuda(TorchFunctionMode):
    """Context in which "cuda" is the pretended device.

    Attributes:
        waits: (kind, place) -> how often the host would have waited. The place is the line that
            called torch.
        event_waits: how often the host waited for an event, which it recorded earlier.
        calls: number of the calls that would launch something on the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[tuple[str, str]] = Counter()
        self.event_waits = 0
        self.calls = 0
        self._pinned: set[int] = set()
        self._patches: list[Any] = []

    def __enter__(self) -> PretendedCuda:
        self._patches = [
            mock.patch.object(torch.cuda, "Event", lambda *_, **__: _Event(self)),
            mock.patch.object(torch.cuda, "current_device", lambda: 0),
            mock.patch.object(torch.cuda, "current_stream", lambda device=None: device),
        ]
        for patch in self._patches:
            patch.start()
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        for patch in self._patches:
            patch.stop()

    def own_waits(self) -> int:
        """Waits at lines of panoptic_ext."""
        return sum(n for (_, place), n in self.waits.items() if place.startswith("panoptic_ext/"))

    def report(self) -> str:
        """The waits, one a line, for messages."""
        return "\n".join(f"{n} x {kind} at {at}" for (kind, at), n in sorted(self.waits.items()))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", str(func))
        if name == "__get__":  # of an attribute, such as a gradient
            value = func(*args, **kwargs)
            return _to_device(value) if isinstance(args[0], DeviceTensor) else value
        leaves = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        on_device = [x for x in leaves if isinstance(x, DeviceTensor)]
        target = _target(name, args, kwargs)
        if name == "pin_memory":
            return self._pin(args[0])
        if name == "is_pinned":
            return id(args[0].untyped_storage()) in self._pinned
        if kwargs.pop("pin_memory", False):  # a factory of memory of the host
            return self._pin(_to_host(func(*args, **kwargs)))
        if target is not None and target.type == "cuda":
            return self._onto_device(func, name, args, kwargs, on_device)
        if not on_device:
            return func(*args, **kwargs)
        self._check_devices(func, name, leaves)
        self.calls += 1
        if name == "numpy":
            raise TypeError(f"can't convert {CUDA} device type tensor to numpy")
        if name in _TO_HOST or (target is not None and target.type == "cpu"):
            self._note("copy to the host")
            return tree_map(_to_host, func(*_without_device(args), **_without_device(kwargs)))
        if name == "copy_" and not isinstance(args[0], DeviceTensor):
            pinned = id(args[0].untyped_storage()) in self._pinned
            if not (pinned and kwargs.pop("non_blocking", False)):
                self._note("copy to the host")
            return _to_host(func(args[0], _to_host(args[1])))
        if name in _READS or _indexes_by_value(name, args):
            self._note(f"{name} reads values")
        if name in ("__getitem__", "__setitem__") and _indexes_from_host(args):
            self._note("an index is copied from the host")
        return func(*args, **kwargs)

    def _onto_device(
        self, func: Any, name: str, args: tuple, kwargs: dict[str, Any], on_device: list
    ) -> Any:
        """A result on the device: of a factory, or of a tensor that is moved there."""
        from_host = name in _MAKERS_FROM_HOST | {"to", "cuda"} and not on_device
        if from_host:
            source = args[0]
            pinned = isinstance(source, torch.Tensor) and (
                id(source.untyped_storage()) in self._pinned
            )
            if not (pinned and kwargs.get("non_blocking")):
                self._note("copy of memory that is not page-locked, or that blocks")
        if name in ("to", "cuda") and not isinstance(args[0], DeviceTensor):
            args = (args[0].clone(), *args[1:])
        self.calls += 1
        made = func(*_without_device(args), **_without_device(kwargs))
        return tree_map(_to_device, made)

    def _check_devices(self, func: Any, name: str, leaves: list[torch.Tensor]) -> None:
        # In a backward pass, the engine hands gradients of the CPU to a function's backward.
        if torch._C._current_graph_task_id() != -1 or name in _HARMLESS:
            return
        on_host = [x for x in leaves if not isinstance(x, DeviceTensor) and x.dim() > 0]
        if on_host and name not in ("__getitem__", "__setitem__"):
            raise RuntimeError(
                f"{resolve_name(func) or name} got tensors on {CUDA} and on cpu, of shapes "
                f"{[tuple(x.shape) for x in leaves]}"
            )

    def _pin(self, tensor: torch.Tensor) -> torch.Tensor:
        pinned = tensor.clone()
        storage = pinned.untyped_storage()
        self._pinned.add(id(storage))
        pinned._kept_storage = storage  # its identity must stay
        return pinned

    def _note(self, kind: str) -> None:
        self.waits[kind, _place()] += 1


class _Event:
    """A pretended torch.cuda.Event, which counts how often the host waits for one."""

    def __init__(self, device: PretendedCuda) -> None:
        self._device = device

    def record(self, stream: Any = None) -> None:
        """A stream is pretended by its device; that of device 0 is the current one."""
        if stream != CUDA:
            raise RuntimeError(f"an event is recorded on another device's stream than {CUDA}'s")

    def synchronize(self) -> None:
        self._device.event_waits += 1


def to_pretended(module: nn.Module) -> nn.Module:
    """Move a module's parameters and buffers, in place, to the pretended device."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                moved = _to_device(parameter.detach())
                part._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = _to_device(buffer.detach())
    return module


def _to_device(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and not isinstance(value, DeviceTensor):
        with torch._C.DisableTorchFunction():
            return value.as_subclass(DeviceTensor)
    return value


def _to_host(value: Any) -> Any:
    if isinstance(value, DeviceTensor):
        with torch._C.DisableTorchFunction():
            return value.as_subclass(torch.Tensor)
    return value


def _target(name: str, args: tuple, kwargs: dict[str, Any]) -> torch.device | None:
    """The device that a call names, or None."""
    device = kwargs.get("device")
    if device is None and name == "to":
        device = next((a for a in args[1:] if isinstance(a, (str, torch.device))), None)
        if device is None and len(args) > 1 and isinstance(args[1], torch.Tensor):
            device = args[1].device
    if name == "cuda":
        return CUDA
    return None if device is None else torch.device(device)


def _without_device(values: Any) -> Any:
    if isinstance(values, dict):
        return {k: v for k, v in values.items() if k not in ("device", "non_blocking")} | (
            {"device": torch.device("cpu")} if "device" in values else {}
        )
    cpu = torch.device("cpu")
    return tuple(
        cpu if isinstance(v, torch.device) or (isinstance(v, str) and v.startswith("cuda")) else v
        for v in values
    )


def _indexes_by_value(name: str, args: tuple) -> bool:
    """Whether the size of a result depends on values."""
    if name == "where":
        return len(args) == 1
    if name in ("__getitem__", "__setitem__", "index_put_", "index_put"):
        if not any(_is_mask(x) for x in _indices(args[1])):
            return False
        # A single value is written by masked_fill, whose size is that of the tensor.
        written = args[2] if name == "__setitem__" else None
        return not (isinstance(written, (bool, int, float)) or getattr(written, "ndim", 1) == 0)
    if name == "repeat_interleave":
        return len(args) > 1 and isinstance(args[1], torch.Tensor)
    return False


def _indexes_from_host(args: tuple) -> bool:
    return any(
        isinstance(x, (list, np.ndarray))
        or (isinstance(x, torch.Tensor) and not isinstance(x, DeviceTensor) and x.dim() > 0)
        for x in _indices(args[1])
    )


def _indices(index: Any) -> tuple:
    return index if isinstance(index, tuple) else (index,)


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)


def _place() -> str:
    """The line that called torch: "package/file.py:line"."""
    frame = sys._getframe(2)
    while frame is not None:
        parts = Path(frame.f_code.co_filename).parts
        if parts[-1] != "pretended_cuda.py" and not {"torch", "fvcore", "<frozen"} & set(parts):
            root = next((i for i, part in enumerate(parts) if part in _PACKAGES), len(parts) - 2)
            return f"{'/'.join(parts[root:])}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"
