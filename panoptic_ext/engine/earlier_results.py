"""Results of an evaluation are replaced by the same evaluation alone; others are kept aside."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import get_event_storage
from torch import nn

from panoptic_ext.atomic import write_atomic
from panoptic_ext.errors import NOT_JSON, listed, quoted

__all__ = [
    "RESULTS_FILE",
    "config_differences",
    "config_values",
    "evaluation_settings",
    "keep_earlier_results",
    "listed_some",
    "write_settings",
]

logger = logging.getLogger(__name__)

RESULTS_FILE = "results.json"
_SETTINGS_FILE = "evaluation.json"  # of which weights and settings the results beside it are

_OF_NO_INFLUENCE = ("MODEL.WEIGHTS", "MODEL.DEVICE")
_MOST_NAMED = 3  # keys in the line about results that were moved


def evaluation_settings(cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
    """What the results of an evaluation depend on.

    Returns:
        "by", whether a "training" evaluates its model or an "evaluation" loaded one; "weights", a
        hash of the model's tensors; and "config", the keys of MODEL, INPUT and TEST -> values.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            plain = value.detach().cpu().contiguous().reshape(-1)
            digest.update(plain.view(torch.uint8).numpy())
    by = "training" if _is_training() else "evaluation"
    return {"by": by, "weights": digest.hexdigest(), "config": config_values(cfg)}


def config_values(cfg: CfgNode) -> dict[str, str]:
    """What a model's results depend on: full key -> value as text, of MODEL, INPUT and TEST."""
    values: dict[str, str] = {}
    for section in ("MODEL", "INPUT", "TEST"):
        values.update(_flat(cfg[section], section))
    return values


def config_differences(before: Any, now: Mapping[str, str]) -> list[str]:
    """Texts such as "TEST.AMP_DTYPE was '', is 'bfloat16'", of two results of `config_values`."""
    there = before if isinstance(before, dict) else {}
    keys = [key for key in {**now, **there} if there.get(key) != now.get(key)]
    return [f"{key} was {_shown(there, key)}, is {_shown(now, key)}" for key in keys]


def listed_some(texts: Sequence[str]) -> str:
    """The first few, for a message."""
    return listed(texts, _MOST_NAMED, separator="; ", show=str)


def keep_earlier_results(folder: str, settings: dict[str, Any]) -> str:
    """Move the results in `folder` to the first free `<folder>-<number>`, if others replace them.

    They stay where they are of the same weights and settings. Those of a training's earlier
    evaluations are replaced by its later ones, as ever.

    Args:
        folder: of one data set's results.
        settings: `evaluation_settings` of the results that will be written there.

    Returns:
        Where they are now; "" if they were not moved.
    """
    if not os.path.exists(os.path.join(folder, RESULTS_FILE)):
        return ""
    before = _read(os.path.join(folder, _SETTINGS_FILE))
    differences = _differences(before, settings)
    both_training = before.get("by", "training") == settings["by"] == "training"
    if both_training or not differences:
        return ""
    number = 1
    while os.path.lexists(f"{folder}-{number}"):
        number += 1
    kept = f"{folder}-{number}"
    os.rename(folder, kept)
    logger.warning(
        "%s held results of an evaluation with other settings (%s): these are now in %s",
        folder,
        listed_some(differences),
        kept,
    )
    return kept


def write_settings(folder: str, settings: dict[str, Any]) -> None:
    """Note in `folder` what its results are of."""
    content = json.dumps(settings, indent=1).encode()
    write_atomic(os.path.join(folder, _SETTINGS_FILE), lambda stream: stream.write(content))


def _is_training() -> bool:
    try:
        get_event_storage()
    except AssertionError:
        return False
    return True


def _flat(node: CfgNode, prefix: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for name, value in node.items():
        key = f"{prefix}.{name}"
        if isinstance(value, CfgNode):
            values.update(_flat(value, key))
        elif key not in _OF_NO_INFLUENCE:
            values[key] = repr(_with_lists(value))
    return values


def _with_lists(value: Any) -> Any:
    """Tuples as lists: a config that was read from a file has these."""
    return [_with_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def _read(path: str) -> dict[str, Any]:
    """The settings in a file; empty where there are none, as in folders of former versions."""
    try:
        with open(path, encoding="utf-8") as stream:
            content = json.load(stream)
    except (OSError, *NOT_JSON):
        return {}
    return content if isinstance(content, dict) else {}


def _differences(before: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    if not before:
        return ["which ones is not known"]
    texts = config_differences(before.get("config"), settings["config"])
    return texts + ["other weights"] * (before.get("weights") != settings["weights"])


def _shown(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key, "missing")
    return value if isinstance(value, str) and len(value) < 60 else quoted(value, 60)
