"""Save the effective config, the versions, the git state and the classes of a run."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
from typing import Any

import detectron2
import numpy
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.collect_env import collect_env_info

from panoptic_ext._detectron2 import detectron2_build, detectron2_version
from panoptic_ext.atomic import write_atomic
from panoptic_ext.data.datasets.metadata_file import METADATA_FILE, save_metadata
from panoptic_ext.modeling.meta_arch.base import meta_architecture

__all__ = ["git_state", "save_run_info", "versions"]

logger = logging.getLogger(__name__)


def save_run_info(cfg: CfgNode, output_dir: str) -> None:
    """Write config.yaml, run_info.json, environment.txt and metadata.json into `output_dir`.

    config.yaml is the complete config and can be given as --config-file.

    Args:
        cfg: the config of the run.
        output_dir: a folder, made if it does not exist.
    """
    os.makedirs(output_dir, exist_ok=True)
    info: dict[str, Any] = {
        "command": sys.argv,
        "versions": versions(),
        "detectron2": detectron2_build() | {"git": git_state(os.path.abspath(detectron2.__file__))},
        "git": git_state(os.path.abspath(__file__)),
    }
    _write(output_dir, "config.yaml", meta_architecture(cfg).config_of_run(cfg).dump())
    _write(output_dir, "run_info.json", json.dumps(info, indent=1))
    _write(output_dir, "environment.txt", collect_env_info() + "\n")
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if names and MetadataCatalog.get(names[0]).get("isthing") is not None:
        save_metadata(MetadataCatalog.get(names[0]), os.path.join(output_dir, METADATA_FILE))
    logger.info("Config, versions and git state are in %s: %s", output_dir, json.dumps(info))


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on, and of Python: name -> version."""
    # Imported here, because panoptic_ext may itself be importing this module.
    from panoptic_ext import __version__

    return {
        "panoptic_ext": __version__,
        "detectron2": detectron2_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


def git_state(path: str) -> dict[str, Any] | None:
    """Commit of the repository that tracks the file `path`, and whether files differ from it.

    Returns:
        {"commit": str, "dirty": bool}; None if no repository tracks the file or git is missing.
    """
    folder, name = os.path.split(path)

    def git(*args: str) -> str:
        command = ["git", "-C", folder, *args]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        # Fails for a file that no repository tracks, e.g. in a .venv within a repository.
        git("ls-files", "--error-unmatch", "--", name)
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _write(folder: str, name: str, content: str) -> None:
    write_atomic(os.path.join(folder, name), lambda stream: stream.write(content.encode()))
