"""Make an entry of the model zoo of a training run: a small folder that can be published."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.evaluation.testing import flatten_results_dict

from panoptic_ext.atomic import write_atomic
from panoptic_ext.config.image_values import sizes_of_test_images
from panoptic_ext.data.coco.categories import Category
from panoptic_ext.data.datasets.metadata import categories_of
from panoptic_ext.data.datasets.metadata_file import METADATA_FILE, load_metadata, save_metadata
from panoptic_ext.download import sha256_of
from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.engine.checkpoint.files import best_checkpoint
from panoptic_ext.engine.checkpoint.read_weights import load_torch
from panoptic_ext.engine.earlier_results import RESULTS_FILE, read_settings, weights_hash
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.errors import NOT_JSON, CheckpointError, ConfigError
from panoptic_ext.model_zoo.entry import ZooEntry, check_name, read_entry

__all__ = ["entry_from_run"]

logger = logging.getLogger(__name__)

_CONFIG = "config.yaml"
# Block of results.json -> its keys that become figures.
_FIGURES = {"panoptic_seg": ("PQ", "PQ_th", "PQ_st"), "sem_seg": ("mIoU",), "segm": ("AP",)}


def entry_from_run(
    run: str, name: str, output: str, *, licence: str, commercial_use: bool, source: str
) -> ZooEntry:
    """Write an entry: NAME.yaml, NAME.pth, config.yaml and metadata.json, all in one folder.

    NAME.pth holds the weights of the best evaluation (TEST.BEST_METRIC), or else of the last
    checkpoint, without the state of the training. The config loses what belongs to this machine:
    paths of data, of the output and of the first weights.

    Args:
        run: the output folder of a training run.
        name: of the entry; the files are called as its last part.
        output: the folder, which must not have an entry of this name.
        licence, commercial_use, source: see `ZooEntry`.

    Returns:
        The entry.

    Raises:
        ConfigError: the folder is not one of a run, or the entry is there already.
        CheckpointError: the run has no checkpoint, or it cannot be read.
    """
    check_name(name)
    stem = name.rsplit("/", 1)[-1]
    path = os.path.join(output, f"{stem}.yaml")
    if not os.path.isfile(os.path.join(run, _CONFIG)):
        raise ConfigError(f"{run} has no {_CONFIG}; expected the output folder of a training run")
    if os.path.lexists(path):
        raise ConfigError(f"{path} exists; choose another --output or --name, or remove it")
    saved = load_metadata(os.path.join(run, METADATA_FILE))
    cfg = load_cfg(os.path.join(run, _CONFIG), use_data=False, trained_on=saved).clone()
    checkpoint = _checkpoint(run)
    weights = checkpoint["model"]
    content = {
        "name": name,
        "task": _task(cfg),
        "data_set": (*cfg.DATASETS.TEST, saved.name)[0],
        "classes": [_class_row(category) for category in categories_of(saved)],
        "config": _CONFIG,
        "weights": {"file": f"{stem}.pth"},
        "licence": licence,
        "commercial_use": commercial_use,
        "source": source,
        "figures": _figures(run, cfg, checkpoint),
        "input": _input(cfg),
    }
    os.makedirs(output, exist_ok=True)
    file = os.path.join(output, f"{stem}.pth")
    write_atomic(file, lambda stream: torch.save({"model": weights}, stream))
    content |= {"sha256": sha256_of(file), "size": os.path.getsize(file)}
    save_metadata(saved, os.path.join(output, METADATA_FILE))
    _write(os.path.join(output, _CONFIG), _portable(cfg, stem).dump())
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, allow_unicode=True)
    _write(path, text)
    return read_entry(path)


def _checkpoint(run: str) -> dict[str, Any]:
    last = Checkpointer(torch.nn.Identity(), run, save_to_disk=False).get_checkpoint_file()
    path = best_checkpoint(run) or last
    if not path:
        raise CheckpointError(f"{run} has no checkpoint; train until the first one is written")
    logger.info("Weights of %s", path)
    return load_torch(path)


def _class_row(category: Category) -> dict[str, Any]:
    row = category._asdict() | {"color": list(category.color)}
    return {key: row[key] for key in ("id", "name", "isthing", "color")}


def _task(cfg: CfgNode) -> str:
    is_mask_former = "MaskFormer" in cfg.MODEL.META_ARCHITECTURE
    return cfg.MODEL.MASK_FORMER.TASK if is_mask_former else "panoptic"


def _input(cfg: CfgNode) -> dict[str, Any]:
    sizes = dict(zip(("min_size", "max_size"), sizes_of_test_images(cfg), strict=True))
    return {"format": cfg.INPUT.FORMAT, **{key: size for key, size in sizes.items() if size}}


def _figures(run: str, cfg: CfgNode, checkpoint: Mapping[str, Any]) -> dict[str, float]:
    """The figures of an evaluation of the checkpoint: the one in it, or else the run's last one."""
    for name in cfg.DATASETS.TEST:
        if "evaluation" in checkpoint:
            prefix = f"{name}/" if len(cfg.DATASETS.TEST) > 1 else ""
            in_file = checkpoint["evaluation"].items()
            return _rounded({metric.removeprefix(prefix): value for metric, value in in_file})
        folder = os.path.join(run, "inference", name)
        results = _read_json(os.path.join(folder, RESULTS_FILE))
        if not results:
            continue
        if read_settings(folder).get("weights") != weights_hash(checkpoint["model"]):
            logger.warning("%s is of other weights: its figures are left out", folder)
            continue
        return _rounded(flatten_results_dict(results))
    return {}


def _rounded(results: Mapping[str, float | None]) -> dict[str, float]:
    """The figures of an entry, of results by "block/key"."""
    found = {key: results.get(f"{block}/{key}") for block, keys in _FIGURES.items() for key in keys}
    return {k: round(v, 2) for k, v in found.items() if v is not None and math.isfinite(v)}


def _read_json(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as stream:
            content = json.load(stream)
    except (OSError, *NOT_JSON):
        return {}
    return content if isinstance(content, dict) else {}


def _portable(cfg: CfgNode, stem: str) -> CfgNode:
    """The config without paths of this machine; its data sets keep their names."""
    cfg = cfg.clone()
    cfg.defrost()
    for block in ("PANOPTIC", "INSTANCES"):
        cfg.DATASETS[block].clear()
    cfg.DATASETS.SEARCH_PATH = ["datasets"]
    cfg.DATASETS.SHAPES.CACHE = ""
    cfg.MODEL.WEIGHTS = ""
    cfg.OUTPUT_DIR = os.path.join("output", stem)
    return cfg


def _write(path: str, text: str) -> None:
    write_atomic(path, lambda stream: stream.write(text.encode()))
