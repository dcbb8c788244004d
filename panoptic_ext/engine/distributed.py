"""Several workers: under torchrun, or spawned by Detectron2's launch."""

from __future__ import annotations

import gc
import os
from datetime import timedelta

import torch
import torch.distributed as dist
from detectron2.utils import comm

from panoptic_ext.errors import ConfigError

__all__ = ["join_torchrun", "leave", "under_torchrun"]

_TIMEOUT = timedelta(minutes=30)


def under_torchrun() -> bool:
    """Whether torchrun (or something that sets the same variables) started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def join_torchrun(*, use_cuda: bool) -> None:
    """Join the process group that torchrun describes, and make Detectron2's groups for it.

    Args:
        use_cuda: nccl with one GPU per process; else gloo.

    Raises:
        ConfigError: more processes than GPUs on this machine, or uneven machines.
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
    dist.init_process_group("nccl" if use_cuda else "gloo", timeout=_TIMEOUT)
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
    dist.destroy_process_group()
    comm._get_global_gloo_group.cache_clear()
    comm._LOCAL_PROCESS_GROUP = None
    gc.collect()  # what the trainer and its model still hold in cycles
