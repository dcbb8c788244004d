"""The settings that the predictions in a folder were made with: weights, config, pictures."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from detectron2.config import CfgNode

from panoptic_ext.atomic import write_atomic
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
}
"""The option of the command predict that gives each keyword of `draw_panoptic`."""

_COMPARED = ("weights", "config", "pictures")


def prediction_settings(cfg: CfgNode, weights: str, drawing: dict[str, Any]) -> dict[str, Any]:
    """What predictions depend on, as JSON can hold it.

    Args:
        cfg: of the model.
        weights: file or address of its weights.
        drawing: keywords of `draw_panoptic`.

    Returns:
        "weights", "config" (hashes) and "pictures", which are compared; "weights_file" and
        "config_values", which say in a message what differs.
    """
    settings: dict[str, Any] = {"weights": _file_hash(weights), "config": _config_hash(cfg)}
    if drawing:
        settings["pictures"] = drawing
    return {**settings, "weights_file": weights, "config_values": config_values(cfg)}


def check_prediction_settings(output: str, settings: dict[str, Any], *, overwrite: bool) -> None:
    """Refuse to mix results of two models in one folder, and write down the settings of these.

    Raises:
        ConfigError: the folder holds results of other settings; the message says which.
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
    found = [name for _, _, names in os.walk(output) for name in names]
    return any(name != SETTINGS_FILE for name in found)


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
        there = before.get("weights_file", f"a file of the sha256 {before.get('weights')}")
        here = settings["weights_file"]
        texts.append(f"the weights were {quoted(there, 200)}, are {quoted(here, 200)}")
    if before.get("config") != settings["config"]:
        known = before.get("config_values")
        texts += (
            config_differences(known, settings["config_values"])
            if known
            else ["the config differs"]
        )
    old, new = before.get("pictures"), settings.get("pictures", {})
    old = old if isinstance(old, dict) else {}
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            there, here = (_given(options, name) for options in (old, new))
            texts.append(f"{DRAWING_OPTIONS.get(name, name)} was {there}, is {here}")
    return listed_some(texts) or "which ones is not known"


def _given(options: dict[str, Any], name: str) -> str:
    return quoted(options[name]) if name in options else "not given"


def _config_hash(cfg: CfgNode) -> str:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", ""
    text = "\n".join((cfg.MODEL.dump(), cfg.INPUT.dump(), cfg.TEST.dump()))
    return hashlib.sha256(text.encode()).hexdigest()


def _file_hash(path: str) -> str:
    """sha256 of a file; of the address itself where `path` is one."""
    if not os.path.isfile(path):
        return path
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
