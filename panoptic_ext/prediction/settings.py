"""The settings that the predictions in a folder were made with: weights, config, pictures."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from detectron2.config import CfgNode

from panoptic_ext.atomic import write_atomic
from panoptic_ext.download import sha256_of
from panoptic_ext.engine.earlier_results import config_differences, config_values, listed_some
from panoptic_ext.errors import NOT_JSON, ConfigError, quoted
from panoptic_ext.prediction.inputs import SETTINGS_FILE
from panoptic_ext.regular_files import SMALL_FILE, check_regular_file

__all__ = ["DRAWING_OPTIONS", "check_prediction_settings", "prediction_settings"]

DRAWING_OPTIONS = {
    "alpha": "--alpha",
    "labels": "--no-labels",
    "font_size": "--font-size",
    "boxes": "--boxes",
    "classes": "--classes",
    "min_score": "--min-score",
}
"""The option of the command predict that gives each keyword of `draw_panoptic`, and the score."""

_COMPARED = ("weights", "config", "pictures")


def prediction_settings(cfg: CfgNode, weights: str, drawing: dict[str, Any]) -> dict[str, Any]:
    """Everything that predictions depend on, in a form for JSON.

    Args:
        cfg: of the model.
        weights: file or address of its weights.
        drawing: keywords of `draw_panoptic`, and "min_score" where segments are left out by it.

    Returns:
        "weights", "config" (hashes) and "pictures", which are compared; "weights_file" and
        "config_values", from which the message about a difference is made.
    """
    settings: dict[str, Any] = {"weights": _file_hash(weights), "config": _config_hash(cfg)}
    if drawing:
        settings["pictures"] = drawing
    return {**settings, "weights_file": weights, "config_values": config_values(cfg)}


def check_prediction_settings(output: str, settings: dict[str, Any], *, overwrite: bool) -> None:
    """Refuse to mix results of two models in one folder; write the settings into a new folder.

    Raises:
        ConfigError: the folder holds results of other settings; the message lists what differs.
    """
    path = os.path.join(output, SETTINGS_FILE)
    if os.path.exists(path) and not overwrite and _holds_results(output):
        check_regular_file(path, SMALL_FILE, error=ConfigError)
        before = _read(path)
        if any(before.get(key) != settings.get(key) for key in _COMPARED):
            raise ConfigError(
                f"{output} holds results of other settings: {_differences(before, settings)}; "
                "choose another --output, or --overwrite them"
            )
        return
    os.makedirs(output, exist_ok=True)
    write_atomic(path, lambda stream: stream.write(json.dumps(settings).encode()))


def _holds_results(output: str) -> bool:
    """Whether a folder holds any file besides the settings."""
    files = (name for _, _, names in os.walk(output) for name in names)
    return any(name != SETTINGS_FILE for name in files)


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as stream:
            content = json.load(stream)
    except NOT_JSON:
        return {}
    return content if isinstance(content, dict) else {}


def _differences(before: dict[str, Any], settings: dict[str, Any]) -> str:
    texts = []
    if before.get("weights") != settings["weights"]:
        file_before = before.get("weights_file", f"a file of the sha256 {before.get('weights')}")
        file_now = settings["weights_file"]
        texts.append(f"the weights were {quoted(file_before, 200)}, are {quoted(file_now, 200)}")
    if before.get("config") != settings["config"]:
        values = before.get("config_values")
        texts += (
            config_differences(values, settings["config_values"])
            if values
            else ["the config differs"]
        )
    old, new = before.get("pictures"), settings.get("pictures", {})
    old = old if isinstance(old, dict) else {}
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            value_before, value_now = (_option_text(options, name) for options in (old, new))
            texts.append(f"{DRAWING_OPTIONS.get(name, name)} was {value_before}, is {value_now}")
    return listed_some(texts) or "which ones is not known"


def _option_text(options: dict[str, Any], name: str) -> str:
    return quoted(options[name]) if name in options else "not given"


def _config_hash(cfg: CfgNode) -> str:
    cfg = cfg.clone()
    cfg.defrost()
    # The weights have a hash of their own, and the device changes no result.
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", ""
    text = "\n".join((cfg.MODEL.dump(), cfg.INPUT.dump(), cfg.TEST.dump()))
    return hashlib.sha256(text.encode()).hexdigest()


def _file_hash(path: str) -> str:
    """sha256 of a file; the address itself where `path` is one."""
    return sha256_of(path) if os.path.isfile(path) else path
