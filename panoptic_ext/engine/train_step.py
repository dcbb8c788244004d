"""One training step: batch, losses, check on all workers, gradients, update."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from panoptic_ext.engine.accumulation import Accumulation
from panoptic_ext.engine.divergence import divergence_of, stand_in_losses
from panoptic_ext.engine.precision import FULL_PRECISION, Precision
from panoptic_ext.errors import ConfigError, NonFiniteLossError, listed
from panoptic_ext.host_copies import to_device
from panoptic_ext.interruption import StopRequest

__all__ = ["TrainStep"]

_MAX_NAMED_IMAGES = 8  # of each worker, in an error
_ONE_VALUE_PER_CHANNEL = "Expected more than 1 value per channel"  # an error of torch's batch norms


class TrainStep:
    """Detectron2's SimpleTrainer and AMPTrainer in one, equal on v0.6 and main.

    If a loss is infinite or NaN, all workers raise before the weights change; in Detectron2 only
    the first one does.

    Attributes:
        model, data_loader, optimizer: as in Detectron2's trainers.
        grad_scaler: None unless training runs in float16.
        precision: precision of the forward pass.
        iter: iteration of the next step, for messages.
        stop: whether this worker was asked to stop.
        stopping: after a step, whether any worker was asked to stop; equal on all workers.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        grad_scaler: torch.amp.GradScaler | None = None,
        precision: Precision = FULL_PRECISION,
        accumulation_steps: int = 1,
    ) -> None:
        """
        Args:
            model: returns a dict of scalar losses in training, with equal keys on all workers.
            data_loader: iterable of batches (lists of dicts with "file_name").
            optimizer: of the model's parameters.
            grad_scaler: scales the loss, for float16.
            precision: the forward pass runs in its autocast, the backward pass outside it.
            accumulation_steps: each batch is computed in so many parts; see `Accumulation`.
        """
        model.train()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.grad_scaler = grad_scaler
        self.precision = precision
        self._accumulation = Accumulation(_inner(model), accumulation_steps)
        self.iter = 0
        self.stop = StopRequest()
        self.stopping = False
        self._loss_names: list[str] = []
        self._batches: Iterator[list[dict[str, Any]]] | None = None

    def run_step(self) -> None:
        """Train on the next batch; losses go into the event storage.

        Raises:
            NonFiniteLossError: on all workers, if a loss of any worker is infinite or NaN, or if
                such numbers made its forward pass fail.
            ConfigError: the batch is too small for batch normalisation.
        """
        start = time.perf_counter()
        if self._batches is None:
            self._batches = iter(self.data_loader)
        data = next(self._batches)
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        check = self._compute_gradients(data, data_time)
        # When the check raises, the weights have not changed yet.
        _log(check.means_or_raise(self.iter, data))
        self.stopping = check.stopping
        if self.grad_scaler is None:
            self.optimizer.step()
        else:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        if comm.get_world_size() == 1:
            self.stopping = bool(self.stop)  # a signal may have come since the check

    def _compute_gradients(self, data: list[dict[str, Any]], data_time: float) -> _LossCheck:
        """Forward and backward pass of each part of a batch."""
        parts = self._accumulation.split(data)
        with self.precision.autocast():
            self._accumulation.draw_samples(parts)
        sums: dict[str, torch.Tensor] = {}
        problem, last = "", len(parts) - 1
        for number, inputs in enumerate(parts.inputs):
            # Workers exchange their gradients once, in the last backward pass.
            with _alone(self.model) if number < last else nullcontext():
                with self.precision.autocast(), parts.part(number):
                    losses, problem_of_part = self._losses_or_problem(inputs)
                    losses = parts.weighted(losses, number)
                problem = problem or problem_of_part
                total = sum(losses.values())
                for name, loss in losses.items():
                    sums[name] = loss.detach() + sums[name] if name in sums else loss.detach()
                if number == last:
                    # The check starts its copy before the backward pass and reads it afterwards, so
                    # that the host need not wait for it.
                    check = _LossCheck(sums, data_time, problem, stop=bool(self.stop))
                if self.grad_scaler is None:
                    total.backward()
                else:
                    self.grad_scaler.scale(total).backward()
        self._accumulation.report(parts)
        return check

    def _losses_or_problem(self, data: list[dict[str, Any]]) -> tuple[dict[str, Any], str]:
        """The losses and ""; or losses of NaN and why this worker could not compute them."""
        losses, problem = {}, ""
        try:
            losses = self._losses(data)
        except Exception as error:
            problem = divergence_of(error, self.model)
            if not problem:
                raise
            if comm.get_world_size() == 1:
                _raise_on_all(self.iter, problem, data, error)
        if isinstance(losses, torch.Tensor):
            losses = {"total_loss": losses}
        if not self._loss_names:
            # At the first step the names of the losses are unknown, so a worker that failed cannot
            # give stand-ins. The workers exchange their problems then; later steps save the time.
            if comm.get_world_size() > 1 and any(comm.all_gather(problem)):
                _raise_on_all(self.iter, problem, data)
            self._loss_names = list(losses)
        if problem:
            losses = stand_in_losses(self.model, data, self._loss_names)
        return losses, problem

    def _losses(self, data: list[dict[str, Any]]) -> Any:
        try:
            return self.model(data)
        except ValueError as error:
            if _ONE_VALUE_PER_CHANNEL not in str(error):
                raise
            sizes = ", ".join(" x ".join(map(str, d["image"].shape[-2:])) for d in data)
            raise ConfigError(
                f"batch normalisation found one value a channel in a batch of {sizes} pixels, "
                "expected two or more to normalise by. Raise SOLVER.IMS_PER_BATCH or "
                "INPUT.MIN_SIZE_TRAIN, lower SOLVER.ACCUMULATION_STEPS, or choose a norm without "
                "batch statistics (MODEL.RESNETS.NORM FrozenBN or GN)"
            ) from error


class _LossCheck:
    """Mean of the losses over the workers, copied to the host while the backward pass runs.

    Attributes:
        stopping: whether any worker was asked to stop; known after `means_or_raise`.
    """

    def __init__(
        self,
        losses: dict[str, torch.Tensor],
        data_time: float,
        problem: str = "",
        *,
        stop: bool = False,
    ) -> None:
        self.stopping = stop
        self._problem = problem
        self._names = sorted(losses)
        self._local = torch.stack([losses[k].detach().double().reshape(()) for k in self._names])
        # One reduction serves logging, checking and stopping: a sum with an infinite or NaN term is
        # infinite or NaN on every worker.
        time_and_stop = to_device(np.array([data_time, float(stop)]), self._local.device)
        mean = torch.cat([self._local, time_and_stop])
        if comm.get_world_size() > 1:
            dist.all_reduce(mean)
            mean /= comm.get_world_size()
        self._event = None
        self._mean = mean
        if mean.is_cuda:
            self._mean = torch.empty_like(mean, device="cpu", pin_memory=True)
            self._mean.copy_(mean, non_blocking=True)
            self._event = torch.cuda.Event()
            # The stream of the losses' device, which need not be the current one.
            self._event.record(torch.cuda.current_stream(mean.device))

    def means_or_raise(self, iteration: int, data: list[dict[str, Any]]) -> dict[str, float]:
        """Mean of each loss and of "data_time"; raises NonFiniteLossError on all workers."""
        if self._event is not None:
            self._event.synchronize()
        *means, data_time, stopping = self._mean.tolist()
        self.stopping = stopping > 0
        if not all(map(math.isfinite, means)):
            self._raise(iteration, data)
        return dict(zip(self._names, means, strict=True), data_time=data_time)

    def _raise(self, iteration: int, data: list[dict[str, Any]]) -> None:
        local = dict(zip(self._names, self._local.tolist(), strict=True))
        bad = [f"{name} = {value}" for name, value in local.items() if not math.isfinite(value)]
        _raise_on_all(iteration, self._problem or ", ".join(bad), data)


def _inner(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _alone(model: nn.Module) -> AbstractContextManager[None]:
    """The block in which gradients stay with their worker."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def _raise_on_all(
    iteration: int, problem: str, data: list[dict[str, Any]], cause: Exception | None = None
) -> NoReturn:
    """Raise the same NonFiniteLossError on all workers, which must all call this.

    Args:
        iteration: of the step.
        problem: what is not finite on this worker, or "".
        data: the batch of this worker.
        cause: the error that revealed the problem, or None.
    """
    names = (f"{d.get('image_id', '?')} ({d.get('file_name', '?')})" for d in data)
    images = listed(names, _MAX_NAMED_IMAGES, show=str)
    reports = comm.all_gather((comm.get_rank(), problem, images))
    parts = [
        f"on worker {rank}: {problem} with images {images}"
        for rank, problem, images in reports
        if problem
    ]
    raise NonFiniteLossError(
        f"the loss is not finite at iteration {iteration}, {'; '.join(parts)}. The weights "
        "were not changed by this step and the last checkpoint is untouched. Look at these "
        "images (panoptic-ext data visualize), lower SOLVER.BASE_LR, lengthen "
        "SOLVER.WARMUP_ITERS or enable SOLVER.CLIP_GRADIENTS, and go on with --resume"
    ) from cause


def _log(means: dict[str, float]) -> None:
    if not comm.is_main_process():
        return
    storage = get_event_storage()
    storage.put_scalar("data_time", means.pop("data_time"))
    storage.put_scalar("total_loss", sum(means.values()))
    if len(means) > 1:
        storage.put_scalars(**means)
