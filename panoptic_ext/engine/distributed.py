"""Several workers: under torchrun, or spawned by Detectron2's launch."""

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

_TIMEOUT = timedelta(minutes=30)
_LET_GO = 0.2  # seconds

# What torchrun sets and is read here or by torch: the least and the largest value of each number.
_NUMBERS = {
    "WORLD_SIZE": (1, 10**6),
    "RANK": (0, 10**6),
    "LOCAL_WORLD_SIZE": (1, 10**6),
    "LOCAL_RANK": (0, 10**6),
    "MASTER_PORT": (0, 65535),
}
_HOW = "torchrun sets it for each worker; to run without torchrun, unset RANK and WORLD_SIZE"


def under_torchrun() -> bool:
    """Whether torchrun (or something that sets the same variables) started this process.

    Raises:
        ConfigError: one of these variables cannot be used; the message names it.
    """
    given = [name for name in ("RANK", "WORLD_SIZE") if name in os.environ]
    if given:
        _check_variables(complete=len(given) == 2)
    return len(given) == 2


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
    """The worker's part of SOLVER.IMS_PER_BATCH.

    Raises:
        ConfigError: the workers cannot share the batch evenly.
    """
    images, rest = divmod(cfg.SOLVER.IMS_PER_BATCH, world_size)
    if rest:
        hint = " (SOLVER.REFERENCE_WORLD_SIZE)" * (world_size == cfg.SOLVER.REFERENCE_WORLD_SIZE)
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH = {cfg.SOLVER.IMS_PER_BATCH} images cannot be shared evenly by "
            f"{world_size} workers{hint}; make it a multiple of {world_size}"
        )
    return images


def share_buffers(model: nn.Module) -> None:
    """Give every worker the first one's buffers, such as the statistics of batch norms; in place.

    All workers must call it. Training is not changed by it: it normalises with the batch's own
    statistics.
    """
    if comm.get_world_size() == 1:
        return
    with torch.no_grad():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def _check_variables(*, complete: bool) -> None:
    """Raise ConfigError for the first of torchrun's variables that is unfit, or that is missing."""
    for name, (least, largest) in _NUMBERS.items():
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
                f"{least} to {largest}; {_HOW}"
            )
    if not complete:
        return
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise ConfigError(f"environment variable {name} is missing; {_HOW}")
    for name, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if size in os.environ and int(os.environ.get(name, 0)) >= int(os.environ[size]):
            raise ConfigError(
                f"environment variable {name} = {os.environ[name]}, expected less than {size} = "
                f"{os.environ[size]}; {_HOW}"
            )


def join_torchrun(*, use_cuda: bool) -> None:
    """Join the process group that torchrun describes, and make Detectron2's groups for it.

    Args:
        use_cuda: nccl with one GPU per process; else gloo.

    Raises:
        ConfigError: more processes than GPUs on this machine, uneven machines, or the workers do
            not find one another.
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
        dist.init_process_group("nccl" if use_cuda else "gloo", timeout=_TIMEOUT)
    except dist.DistError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ConfigError(
            f"the {world_size} workers cannot meet at {where} (MASTER_ADDR, MASTER_PORT): "
            f"{str(error).splitlines()[0][:200]}; choose a free port and a machine that all reach"
        ) from error
    make_local_group(local_size)
    comm.synchronize()


def make_local_group(local_size: int) -> None:
    """The group of workers on one machine, where Detectron2 looks for it.

    Args:
        local_size: workers on each machine; ranks of a machine follow one another.
    """
    if hasattr(comm, "create_local_process_group"):  # main
        comm.create_local_process_group(local_size)
        return
    machine = dist.get_rank() // local_size
    for i in range(dist.get_world_size() // local_size):
        group = dist.new_group(list(range(i * local_size, (i + 1) * local_size)))
        if i == machine:
            comm._LOCAL_PROCESS_GROUP = group


def leave() -> None:
    """Leave the process group, if there is one, and end its threads.

    Detectron2 keeps the groups in module variables, so destroying them is not enough: a gloo
    thread that lets go of its last tensor while the interpreter shuts down aborts the process.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    # Destroying a gloo group joins its threads with the interpreter's lock held (torch 2.4), and a
    # thread that still has to let go of a tensor waits for that lock: give it the time to.
    time.sleep(_LET_GO)
    dist.destroy_process_group()
    for name in ("_get_global_gloo_group", "create_local_process_group"):  # the latter: main
        if hasattr(getattr(comm, name, None), "cache_clear"):
            getattr(comm, name).cache_clear()
    comm._LOCAL_PROCESS_GROUP = None
    gc.collect()  # what the trainer and its model still hold in cycles
