"""The results of benchmarks/gpu_suite.py on disk: whole after every measurement."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from panoptic_ext.atomic import write_atomic
from panoptic_ext.engine.run_info import git_state, versions

__all__ = ["Results"]

_PACKAGES = ("triton", "transformers", "timm", "torchvision", "fvcore", "scipy")


class Results:
    """Rows of measurements by key, and what they were measured on.

    Attributes:
        content: {"environments": [...], "rows": {key: row}, "running": {key: tries}}.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = {"environments": [], "rows": {}, "running": {}}
        if path.is_file():
            self.content.update(json.loads(path.read_text(encoding="utf-8")))

    def row(self, key: str) -> dict[str, Any] | None:
        """What was measured, or None."""
        return self.content["rows"].get(key)

    def begin(self, key: str) -> int:
        """Note that a measurement begins; returns how often it has begun without an end."""
        tries = self.content["running"].get(key, 0) + 1
        self.content["running"] = {key: tries}
        self._write()
        return tries

    def end(self, key: str, row: dict[str, Any]) -> None:
        """Keep the row of a measurement."""
        self.content["running"] = {}
        environment = len(self.content["environments"]) - 1
        self.content["rows"][key] = {**row, "environment": environment}
        self._write()

    def running(self) -> str | None:
        """The measurement that has begun and not ended."""
        return next(iter(self.content["running"]), None)

    def note_environment(self, device: str, root: Path) -> None:
        """Add this machine and these versions, unless they are those of the last call."""
        found = _environment(device, root)
        environments = self.content["environments"]
        same = environments and {**environments[-1], "time": ""} == {**found, "time": ""}
        if not same:
            environments.append(found)
            self._write()

    def _write(self) -> None:
        text = json.dumps(self.content, indent=1)
        write_atomic(os.fspath(self.path), lambda stream: stream.write(text.encode()))


def _environment(device: str, root: Path) -> dict[str, Any]:
    found: dict[str, Any] = {
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": f"{platform.machine()} CPU",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        **versions(),
    }
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    git = git_state(os.path.join(root, "setup.py"))
    # Where the repository's history did not travel, tools/pack_wheels.py has noted the commit.
    noted = root / ".whl/commit.txt"
    found["commit"] = git or (noted.read_text().strip() if noted.is_file() else None)
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _driver(),
        }
    return found


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip()
