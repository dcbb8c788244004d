"""One training step of a model on a batch in parts, and what it gives."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from panoptic_ext.engine.build_model import build_model, distributed_model
from panoptic_ext.engine.train_step import TrainStep
from tests.tiny import eomt, mask_former
from tests.tiny.model_inputs import fake_metadata

SEGMENTS_OF_WORKERS = ((1, 5, 2), (4, 3, 3))


class _Float64ForFloat32(TorchFunctionMode):
    """Casts to float32, which guard models against half types, are casts to float64."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = (torch.float64 if value is torch.float32 else value for value in args)
        kwargs = {
            name: torch.float64 if value is torch.float32 else value
            for name, value in (kwargs or {}).items()
        }
        return func(*args, **kwargs)


@contextmanager
def in_double() -> Iterator[None]:
    """Models that are converted to float64 compute in nothing else in the block."""
    _forget_cached_tensors()
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64ForFloat32():
            yield
    finally:
        torch.set_default_dtype(torch.float32)
        _forget_cached_tensors()


def _forget_cached_tensors() -> None:
    """Clear the caches of functions, such as that of position embeddings."""
    modules = [m for name, m in sys.modules.items() if name.startswith("panoptic_ext.modeling")]
    for cached in (value for module in modules for value in vars(module).values()):
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()


class Gradients(torch.optim.Optimizer):
    """An optimizer that keeps the gradients and changes nothing."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), {})
        self.model = model
        self.found: dict[str, Tensor] = {}

    def step(self, closure: Any = None) -> None:
        self.found = {
            n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None
        }


def step_of(
    model: nn.Module, batch: list[dict[str, Any]], steps: int
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Losses and gradients of one step."""
    torch.manual_seed(5)
    optimizer = Gradients(model)
    step = TrainStep(model, [batch], optimizer, accumulation_steps=steps)
    with EventStorage(0) as storage:
        step.run_step()
        losses = {k: v for k, (v, _) in storage.latest().items() if "loss" in k}
    return losses, optimizer.found


def save_frozen_step_of_a_worker(rank: int, folder: str) -> None:
    """Write the gradients of two steps of a model with a frozen beginning, as one of two workers.

    The second one would fail if the workers waited for gradients that do not come.
    """
    fake_metadata(mask_former.NAME)
    try:
        cfg = mask_former.tiny_cfg(**{"MODEL.BACKBONE.FREEZE": 3})
        torch.manual_seed(0)
        model = distributed_model(build_model(cfg))
        batch = [mask_former.mapped((64, 64), 2 + rank, rank)]
        gradients = [step_of(model, batch, 1)[1] for _ in range(2)]
    finally:
        MetadataCatalog.remove(mask_former.NAME)
    waits = getattr(model, "find_unused_parameters", None)
    torch.save((gradients, waits), Path(folder) / f"frozen{rank}.pth")


def frozen(model: nn.Module) -> nn.Module:
    """The model with norms that do not normalise by the batch."""
    return FrozenBatchNorm2d.convert_frozen_batchnorm(model)


def equal_points(*shape: int, **_: Any) -> Tensor:
    """In place of `torch.rand`: points that are equal for every mask, however many are drawn."""
    # Not `torch.rand`, which this function replaces.
    points = torch.empty(4096, 2).uniform_(generator=torch.Generator().manual_seed(3))
    return points[: shape[-2]].expand(shape).clone()


def save_step_of_a_worker(rank: int, folder: str) -> None:
    """Write losses and gradients of a whole batch and of its parts, as one of two workers."""
    fake_metadata(mask_former.NAME)
    model = frozen(eomt.build()).double()
    model = DistributedDataParallel(model, find_unused_parameters=True)
    batch = [mask_former.mapped((64, 64), num, num) for num in SEGMENTS_OF_WORKERS[rank]]
    rand, torch.rand = torch.rand, equal_points
    try:
        with in_double():
            results = [step_of(model, batch, steps) for steps in (1, 3)]
    finally:
        torch.rand = rand
        MetadataCatalog.remove(mask_former.NAME)
    torch.save(results, Path(folder) / f"accumulated{rank}.pth")
