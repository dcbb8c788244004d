"""Keep earlier results of an evaluation, unless the same evaluation is about to replace them."""

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
    "read_settings",
    "weights_hash",
    "write_settings",
]

logger = logging.getLogger(__name__)

RESULTS_FILE = "results.json"
_SETTINGS_FILE = "evaluation.json"  # the weights and settings of the results beside it

# MODEL.WEIGHTS is a path; the weights themselves are compared by their hash.
_KEYS_WITHOUT_INFLUENCE = ("MODEL.WEIGHTS", "MODEL.DEVICE")
_MAX_LISTED_KEYS = 3


def evaluation_settings(cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
    """What the results of an evaluation depend on.

    Returns:
        "by": "training" for the evaluation within a training, else "evaluation". "weights": a hash
        of the model's tensors. "config": the keys of MODEL, INPUT and TEST -> their values.
    """
    by = "training" if _is_training() else "evaluation"
    weights = weights_hash(model.state_dict())
    return {"by": by, "weights": weights, "config": config_values(cfg)}


def weights_hash(state_dict: Mapping[str, Any]) -> str:
    """A hash of the names and tensors of a model, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in state_dict.items():
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            plain = value.detach().cpu().contiguous().reshape(-1)
            digest.update(plain.view(torch.uint8).numpy())
    return digest.hexdigest()


def config_values(cfg: CfgNode) -> dict[str, str]:
    """The keys of MODEL, INPUT and TEST that results depend on: full key -> value as text."""
    values: dict[str, str] = {}
    for section in ("MODEL", "INPUT", "TEST"):
        values.update(_flat(cfg[section], section))
    return values


def config_differences(before: Any, now: Mapping[str, str]) -> list[str]:
    """Texts such as "TEST.AMP_DTYPE was '', is 'bfloat16'", of two results of `config_values`."""
    earlier = before if isinstance(before, dict) else {}
    keys = [key for key in {**now, **earlier} if earlier.get(key) != now.get(key)]
    return [f"{key} was {_shown(earlier, key)}, is {_shown(now, key)}" for key in keys]


def listed_some(texts: Sequence[str]) -> str:
    """The first few of the texts, for a message."""
    return listed(texts, _MAX_LISTED_KEYS, separator="; ", show=str)


def keep_earlier_results(folder: str, settings: dict[str, Any]) -> str:
    """Move results of other settings from `folder` to the first free `<folder>-<number>`.

    Results of the same weights and settings stay and will be overwritten. So do results of an
    evaluation within a training, if the new ones are of such an evaluation too.

    Args:
        folder: the folder of one data set's results.
        settings: `evaluation_settings` of the results that will be written there.

    Returns:
        The folder they were moved to; "" if they were not moved.
    """
    if not os.path.exists(os.path.join(folder, RESULTS_FILE)):
        return ""
    before = read_settings(folder)
    differences = _differences(before, settings)
    both_training = before.get("by", "training") == settings["by"] == "training"
    if both_training or not differences:
        return ""
    number = 1
    while os.path.lexists(f"{folder}-{number}"):
        number += 1
    moved_to = f"{folder}-{number}"
    os.rename(folder, moved_to)
    logger.warning(
        "%s held results of an evaluation with other settings (%s): these are now in %s",
        folder,
        listed_some(differences),
        moved_to,
    )
    return moved_to


def write_settings(folder: str, settings: dict[str, Any]) -> None:
    """Write the weights' hash and the settings of the results in `folder` beside them."""
    content = json.dumps(settings, indent=1).encode()
    write_atomic(os.path.join(folder, _SETTINGS_FILE), lambda stream: stream.write(content))


def _is_training() -> bool:
    # `Trainer.train` keeps an event storage open, around its evaluations too.
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
        elif key not in _KEYS_WITHOUT_INFLUENCE:
            values[key] = repr(_with_lists(value))
    return values


def _with_lists(value: Any) -> Any:
    """Tuples as lists, because a config that was read from a file has lists."""
    return [_with_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def read_settings(folder: str) -> dict[str, Any]:
    """The settings beside the results in `folder`; empty if earlier versions wrote these."""
    try:
        with open(os.path.join(folder, _SETTINGS_FILE), encoding="utf-8") as stream:
            content = json.load(stream)
    except (OSError, *NOT_JSON):
        return {}
    return content if isinstance(content, dict) else {}


def _differences(before: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    if not before:
        return ["which ones is unknown"]
    texts = config_differences(before.get("config"), settings["config"])
    return texts + ["other weights"] * (before.get("weights") != settings["weights"])


def _shown(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key, "missing")
    return value if isinstance(value, str) and len(value) < 60 else quoted(value, 60)
