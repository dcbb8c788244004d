"""Process groups of several workers, started by torchrun or by Detectron2's launch."""

from __future__ import annotations

import gc
import os
import re
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from panoptic_ext.errors import ConfigError, quoted

__all__ = ["join_torchrun", "leave", "share_buffers", "under_torchrun"]

_GROUP_TIMEOUT = timedelta(minutes=30)
_THREADS_RELEASE_TENSORS = 0.2  # seconds

# Variables of torchrun that this module or torch reads -> their smallest and largest number.
_VARIABLE_RANGES = {
    "WORLD_SIZE": (1, 10**6),
    "RANK": (0, 10**6),
    "LOCAL_WORLD_SIZE": (1, 10**6),
    "LOCAL_RANK": (0, 10**6),
    "MASTER_PORT": (0, 65535),
}
_HOW_TO_SET = "torchrun sets it for each worker; to run without torchrun, unset RANK and WORLD_SIZE"


def under_torchrun() -> bool:
    """Whether torchrun (or something that sets the same variables) started this process.

    Raises:
        ConfigError: one of these variables cannot be used; the message names it.
    """
    present = [name for name in ("RANK", "WORLD_SIZE") if name in os.environ]
    if present:
        _check_variables(complete=len(present) == 2)
    return len(present) == 2


def check_workers(cfg: CfgNode, world_size: int) -> None:
    """Raise ConfigError if the workers cannot share the batch, or would all take one GPU."""
    if world_size > 1 and re.fullmatch(r"cuda:\d+", cfg.MODEL.DEVICE):
        raise ConfigError(
            f"MODEL.DEVICE = {cfg.MODEL.DEVICE} would put all {world_size} workers on one GPU; set "
            "it to cuda (each worker takes its own, CUDA_VISIBLE_DEVICES chooses which), or start "
            "one worker"
        )
    images_of_a_worker(cfg, cfg.SOLVER.REFERENCE_WORLD_SIZE or world_size)


def images_of_a_worker(cfg: CfgNode, world_size: int) -> int:
    """Number of images that each worker takes of SOLVER.IMS_PER_BATCH.

    Raises:
        ConfigError: the workers cannot share the batch evenly.
    """
    images, remainder = divmod(cfg.SOLVER.IMS_PER_BATCH, world_size)
    if remainder:
        hint = " (SOLVER.REFERENCE_WORLD_SIZE)" * (world_size == cfg.SOLVER.REFERENCE_WORLD_SIZE)
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH = {cfg.SOLVER.IMS_PER_BATCH} images cannot be shared evenly by "
            f"{world_size} workers{hint}; make it a multiple of {world_size}"
        )
    return images


def share_buffers(model: nn.Module) -> None:
    """Copy the first worker's buffers, such as the statistics of batch norms, to all workers.

    All workers must call this. It does not change the losses of training, where batch norms
    normalise with the statistics of the batch.
    """
    if comm.get_world_size() == 1:
        return
    with torch.no_grad():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def _check_variables(*, complete: bool) -> None:
    """Raise ConfigError for the first of torchrun's variables that is invalid or missing."""
    for name, (least, largest) in _VARIABLE_RANGES.items():
        text = os.environ.get(name)
        if text is None:
            continue
        try:
            fits = least <= int(text) <= largest
        except ValueError:
            fits = False
        if not fits:
            raise ConfigError(
                f"environment variable {name} = {quoted(text)}, expected a whole number from "
                f"{least} to {largest}; {_HOW_TO_SET}"
            )
    if not complete:
        return
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise ConfigError(f"environment variable {name} is missing; {_HOW_TO_SET}")
    for name, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if size in os.environ and int(os.environ.get(name, 0)) >= int(os.environ[size]):
            raise ConfigError(
                f"environment variable {name} = {os.environ[name]}, expected less than {size} = "
                f"{os.environ[size]}; {_HOW_TO_SET}"
            )


def join_torchrun(*, use_cuda: bool) -> None:
    """Join the process group that torchrun describes, and make Detectron2's groups for it.

    Args:
        use_cuda: True is nccl with one GPU per process, False is gloo.

    Raises:
        ConfigError: this machine has fewer GPUs than processes, machines have different numbers of
            workers, or the workers cannot connect.
    """
    world_size = int(os.environ["WORLD_SIZE"])
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    if use_cuda:
        if local_size > torch.cuda.device_count():
            raise ConfigError(
                f"torchrun started {local_size} processes on this machine, which has "
                f"{torch.cuda.device_count()} GPUs; lower --nproc_per_node or set MODEL.DEVICE cpu"
            )
        torch.cuda.set_device(local_rank)
    if world_size % local_size:
        raise ConfigError(
            f"{world_size} workers do not divide into machines of {local_size}; start the same "
            "--nproc_per_node on every machine"
        )
    try:
        dist.init_process_group("nccl" if use_cuda else "gloo", timeout=_GROUP_TIMEOUT)
    except dist.DistError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ConfigError(
            f"the {world_size} workers cannot connect at {where} (MASTER_ADDR, MASTER_PORT): "
            f"{str(error).splitlines()[0][:200]}; choose a free port and a machine that all reach"
        ) from error
    make_local_group(local_size)
    comm.synchronize()


def make_local_group(local_size: int) -> None:
    """Create the group of workers on each machine and store it in Detectron2's `comm`.

    Args:
        local_size: workers on each machine, whose ranks are consecutive.
    """
    if hasattr(comm, "create_local_process_group"):  # Detectron2 main
        comm.create_local_process_group(local_size)
        return
    # Every worker creates the groups of all machines, in the same order, as torch requires.
    machine = dist.get_rank() // local_size
    for i in range(dist.get_world_size() // local_size):
        group = dist.new_group(list(range(i * local_size, (i + 1) * local_size)))
        if i == machine:
            comm._LOCAL_PROCESS_GROUP = group


def leave() -> None:
    """Destroy the process group, if there is one, and end its threads."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    # Destroying a gloo group joins its threads while holding the interpreter's lock (torch 2.4). A
    # thread that must still release a tensor waits for that lock, so it gets some time before.
    time.sleep(_THREADS_RELEASE_TENSORS)
    dist.destroy_process_group()
    # Detectron2 keeps the groups in module variables. They are cleared too: a gloo thread that
    # releases its last tensor while the interpreter shuts down aborts the process.
    for name in ("_get_global_gloo_group", "create_local_process_group"):  # the latter in main
        if hasattr(getattr(comm, name, None), "cache_clear"):
            getattr(comm, name).cache_clear()
    comm._LOCAL_PROCESS_GROUP = None
    gc.collect()  # the trainer and its model hold tensors in reference cycles
