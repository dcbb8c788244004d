"""Joining the workers that torchrun started, and leaving them.

Leaving a process group ends its threads: one that outlives the interpreter aborts it.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from panoptic_ext.commands.train import main
from panoptic_ext.engine.distributed import join_torchrun, leave, under_torchrun
from panoptic_ext.errors import ConfigError
from tests import ROOT
from tests.tiny.file_server import free_port
from tests.tiny.programs import run_workers

# As torchrun sets them for one worker; a store that listens on port 0 takes a free one.
ONE_WORKER = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}


def worker(rank: int, port: str) -> None:
    """Join, exchange, leave; prints whether there were threads of gloo, and how many are left."""
    sizes = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": port}
    os.environ.update({**ONE_WORKER, **sizes, "RANK": str(rank), "LOCAL_RANK": str(rank)})
    join_torchrun(use_cuda=False)
    assert comm.get_local_size() == 2
    assert comm.all_gather(comm.get_rank()) == [0, 1]
    assert comm.gather(torch.ones(2))[:1] or not comm.is_main_process()
    joined = num_gloo_threads()
    leave()
    comm.synchronize()
    print(f"{joined > 0}, then {num_gloo_threads()}")


def num_gloo_threads() -> int:
    return sum("gloo" in name.read_text() for name in Path("/proc/self/task").glob("*/comm"))


def test_leaving_ends_the_threads_of_every_group() -> None:
    lines = [output.strip() for output in run_workers(worker, str(free_port()))]
    # Linux alone shows names of threads, and torch 2.4 gives them none by which to count them.
    has_names = sys.platform == "linux" and torch.__version__ >= "2.14"
    named = any("True" in line for line in lines) or has_names
    assert lines == [f"{named}, then 0"] * 2


@pytest.fixture
def one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ONE_WORKER.items():
        monkeypatch.setenv(name, value)


@functools.lru_cache
def make_local_group_once(workers: int) -> None:
    """As Detectron2 main's comm.create_local_process_group, its cache included."""
    assert comm._LOCAL_PROCESS_GROUP is None
    comm._LOCAL_PROCESS_GROUP = dist.new_group(list(range(workers)))


@pytest.mark.usefixtures("one_worker")
def test_a_process_that_left_joins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectron2 main keeps the call that makes the local group in a cache."""
    if not hasattr(comm, "create_local_process_group"):
        make = make_local_group_once
        monkeypatch.setattr(comm, "create_local_process_group", make, raising=False)
    for _ in range(2):
        join_torchrun(use_cuda=False)
        try:
            assert comm.get_local_size() == 1 and comm.get_local_rank() == 0
        finally:
            leave()


@pytest.mark.usefixtures("one_worker")
@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        *((name, "x", "'x', expected a whole") for name in ONE_WORKER if name != "MASTER_ADDR"),
        ("RANK", "-1", "'-1', expected a whole number from 0"),
        ("RANK", "9" * 6000, "expected a whole number"),
        ("WORLD_SIZE", "", "'', expected a whole number from 1"),
        ("WORLD_SIZE", "0", "'0', expected a whole number from 1"),
        ("RANK", "1", "1, expected less than WORLD_SIZE = 1"),
        ("LOCAL_RANK", "2", "2, expected less than LOCAL_WORLD_SIZE = 1"),
        ("MASTER_PORT", "65536", "'65536', expected a whole number from 0 to 65535"),
        ("MASTER_PORT", None, "is missing"),
        ("MASTER_ADDR", None, "is missing"),
        ("MASTER_ADDR", "", "is missing"),
    ],
)
def test_a_variable_of_torchrun_that_cannot_be_used_is_named(
    name: str, value: str | None, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert under_torchrun()
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        under_torchrun()
    message = str(caught.value)
    assert f"environment variable {name} " in message and text in message and len(message) < 300


def test_a_lone_rank_is_no_torchrun_and_must_be_a_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "0")
    assert not under_torchrun()
    monkeypatch.setenv("RANK", "x")
    config = ROOT / "configs" / "shapes" / "panoptic_fpn" / "panoptic_fpn_R18_shapes.yaml"
    options = ["MODEL.DEVICE", "cpu"]
    assert main(["--config-file", str(config), "--dry-run", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: environment variable RANK = 'x'") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("signum", "worker_code", "said"),
    [
        (signal.SIGTERM, -signal.SIGTERM, True),  # a worker that builds its model
        (signal.SIGINT, 0, True),  # torch hides a worker's KeyboardInterrupt
        (signal.SIGTERM, 143, False),  # the worker has said where to go on from
    ],
)
def test_a_signal_while_workers_build_the_model_ends_with_one_line(
    signum: int,
    worker_code: int,
    said: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def launched(*_args: object, **_kwargs: object) -> None:
        os.kill(os.getpid(), signum)
        if worker_code:
            raise ProcessExitedException("", error_index=0, error_pid=1, exit_code=worker_code)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("panoptic_ext.engine.main.launch", launched)
    config = str(ROOT / "configs/shapes/panoptic_fpn/panoptic_fpn_R18_shapes.yaml")
    opts = ["MODEL.DEVICE", "cuda", "SOLVER.IMS_PER_BATCH", "2"]
    assert main(["--config-file", config, "--num-gpus", "2", *opts]) == 128 + signum
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("stopped at once;") for line in lines] == ([True] if said else [])
