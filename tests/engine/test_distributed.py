"""Leaving a process group ends its threads: one that outlives the interpreter aborts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKER = """
import os, torch
from pathlib import Path
from detectron2.utils import comm
from panoptic_ext.engine import distributed

def threads():
    tasks = Path("/proc/self/task").iterdir()
    return sum("gloo" in (task / "comm").read_text() for task in tasks)

distributed.join_torchrun(use_cuda=False)
assert comm.get_local_size() == 2
assert comm.all_gather(comm.get_rank()) == [0, 1]
assert comm.gather(torch.ones(2))[:1] or not comm.is_main_process()
joined = threads()
distributed.leave()
comm.synchronize()
print(f"worker {os.environ['RANK']}: {joined > 0}, then {threads()}", flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
def test_leaving_ends_the_threads_of_every_group(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2")
    torchrun = (*torchrun, "--master_port=0", "--standalone")
    done = subprocess.run(
        [*torchrun, str(tmp_path / "worker.py")],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(line for line in done.stdout.splitlines() if line.startswith("worker")) == [
        "worker 0: True, then 0",
        "worker 1: True, then 0",
    ]
