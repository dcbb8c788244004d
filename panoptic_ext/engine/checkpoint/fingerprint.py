"""Record in a checkpoint which run wrote it, and compare that with the run that resumes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm

from panoptic_ext.config.detectron2_main import MAIN_DEFAULTS
from panoptic_ext.config.plain_yaml import load_plain_yaml
from panoptic_ext.engine.checkpoint.class_names import (
    check_classes,
    classes_as_dict,
    classes_of_config,
)
from panoptic_ext.engine.checkpoint.parts import PartError, check_kind
from panoptic_ext.engine.run_info import versions
from panoptic_ext.errors import shortened

__all__ = ["check_fingerprint", "compare_runs", "run_fingerprint"]

logger = logging.getLogger(__name__)

# Keys that change neither weights nor losses.
_HARMLESS_KEYS = (
    "OUTPUT_DIR",
    "DATALOADER.NUM_WORKERS",
    "VIS_PERIOD",
    "LOGGERS",
    "WANDB.",
    "MLFLOW.",
    "DATASETS.SEARCH_PATH",
    "MODEL.TRANSFORMERS.ARCHITECTURE",  # the run's config.yaml repeats what NAME_OR_PATH holds
)
# No version of another package has changed a loss so far.
_COMPARED_VERSIONS = ("panoptic_ext", "detectron2", "torch")


def run_fingerprint(cfg: CfgNode) -> dict[str, Any]:
    """Classes (where they have names), config, versions, number of workers, as plain values."""
    now, classes = versions(), classes_of_config(cfg)
    return {
        **({"classes": classes_as_dict(classes)} if classes else {}),
        "config": cfg.dump(),
        "versions": {name: now[name] for name in _COMPARED_VERSIONS},
        "workers": comm.get_world_size(),
    }


def check_fingerprint(part: str, saved: Any) -> None:
    """Raise PartError unless `saved` has the structure of a `run_fingerprint`."""
    check_kind(part, saved, dict)
    check_kind(f"{part}.config", saved.get("config"), str)
    check_kind(f"{part}.versions", saved.get("versions"), dict)
    try:
        config = load_plain_yaml(saved["config"])
    except yaml.YAMLError as error:
        reason = shortened(" ".join(str(error).split()), 150)
        raise PartError(f"{part}.config", f"is no plain YAML ({reason})") from error
    check_kind(f"{part}.config", config, dict)
    if "classes" in saved:
        check_classes(f"{part}.classes", saved["classes"])


def compare_runs(saved: dict[str, Any], cfg: CfgNode) -> list[str]:
    """Log what differs between the run that wrote a checkpoint and this one.

    Args:
        saved: the `run_fingerprint` in the checkpoint, already checked; empty if it has none.
        cfg: the config of this run.

    Returns:
        One line per difference; keys of evaluation and machine are left out.
    """
    if not saved:
        logger.warning("The checkpoint does not hold the config of its run: not compared")
        return []
    now = run_fingerprint(cfg)
    old_config = dict(_flat(load_plain_yaml(saved["config"]), ""))
    new_config = dict(_flat(yaml.safe_load(now["config"]), ""))
    lines = []
    for key in sorted(old_config.keys() | new_config.keys()):
        # A run on v0.6 lacks the keys that main added, and behaves as main with their defaults.
        absent = MAIN_DEFAULTS.get(key, "not there")
        old, new = old_config.get(key, absent), new_config.get(key, absent)
        if old != new and not key.startswith(("TEST.", *_HARMLESS_KEYS)):
            lines.append(f"{key}: {old} in the checkpoint, {new} now")
    for name, new in now["versions"].items():
        old = saved.get("versions", {}).get(name)
        if old != new:
            lines.append(f"{name}: version {old} in the checkpoint, {new} now")
    if lines:
        logger.warning(
            "This run differs from the one that wrote the checkpoint; optimizer and schedule go on "
            "with the learning rates of the checkpoint:\n  %s",
            "\n  ".join(lines),
        )
    return lines


def _flat(node: dict, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
