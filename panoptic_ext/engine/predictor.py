"""One image in, one panoptic result out: a trained model without data set, loader or trainer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode as CN
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

from panoptic_ext.data.augmentation import ResizeShortestEdge
from panoptic_ext.data.metadata_io import METADATA_FILE, load_metadata
from panoptic_ext.engine.checkpoint import Checkpointer
from panoptic_ext.engine.memory_errors import explained_memory_errors
from panoptic_ext.engine.precision import evaluation_precision
from panoptic_ext.engine.setup import choose_device, load_cfg, without_pretrained
from panoptic_ext.errors import ConfigError, quoted

__all__ = ["Predictor", "find_weights", "load_run_cfg"]

_CONFIG_FILE = "config.yaml"


class Predictor(DefaultPredictor):
    """Detectron2's DefaultPredictor that reads weights safely and insists that they fit.

    Calling it takes an image, (H, W, 3) uint8 in BGR order whatever INPUT.FORMAT is, and gives the
    model's output at H x W: "panoptic_seg" and, where the model has them, "sem_seg", "instances".

    Attributes:
        cfg: a copy of the config.
        model: in eval mode.
        metadata: of the data set that the model was trained on.
        weights: the file the weights came from.
        precision: what it predicts in, TEST.AMP_DTYPE.
    """

    def __init__(self, cfg: CN, *, weights: str = "") -> None:
        """
        Args:
            cfg: a config whose data set, or its metadata, is registered (`load_run_cfg` does that).
            weights: a checkpoint; "" takes `find_weights(cfg)`.

        Raises:
            CheckpointError: the weights cannot be read or do not fit.
            ConfigError: there are none.
        """
        self.cfg = cfg.clone()
        self.weights = weights or find_weights(cfg)
        names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
        if not names:
            raise ConfigError(
                "DATASETS.TRAIN and DATASETS.TEST are both empty, but the names of the classes "
                "come from a data set; name one in either"
            )
        self.metadata = MetadataCatalog.get(names[0])
        self.model = build_model(without_pretrained(self.cfg)).eval()
        checkpointer = Checkpointer(
            self.model, save_to_disk=False, allow_pickle=cfg.MODEL.ALLOW_PICKLE
        )
        checkpointer.load(self.weights, checkpointables=[], strict=True)
        self.aug = ResizeShortestEdge(
            [cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST
        )
        self.input_format = cfg.INPUT.FORMAT
        self.precision = evaluation_precision(cfg)

    def __call__(self, original_image: np.ndarray) -> dict[str, Any]:
        """Predict, in the precision of TEST.AMP_DTYPE.

        Args:
            original_image: (H, W, 3) uint8, BGR.

        Returns:
            the model's output for one image.

        Raises:
            MemoryNeededError: there is not enough memory for an image of this size.
        """
        height, width = original_image.shape[:2]
        with explained_memory_errors(height, width), self.precision.autocast():
            return super().__call__(original_image)

    @classmethod
    def from_output_dir(cls, folder: str, *, opts: Sequence[str] = ()) -> Predictor:
        """The last checkpoint of a run, by the config.yaml and metadata.json that the run left.

        Args:
            folder: OUTPUT_DIR of the run, moved or not.
            opts: KEY VALUE pairs over the config.
        """
        cfg = load_run_cfg(folder, opts)
        return cls(cfg, weights=find_weights(cfg, folder=folder))


def load_run_cfg(path: str, opts: Sequence[str] = ()) -> CN:
    """The config to predict with; what a run left is enough, its data set need not be there.

    Args:
        path: a YAML file, or the output folder of a training run.
        opts: KEY VALUE pairs, applied last.

    Returns:
        A frozen config whose classes are registered, on the CPU where there is no CUDA.

    Raises:
        ConfigError: the config is wrong, or the folder is not one of a run.
        DatasetError: the class names can be read from neither data set nor metadata.json.
    """
    config = os.path.join(path, _CONFIG_FILE) if os.path.isdir(path) else path
    if os.path.isdir(path) and not os.path.lexists(config):
        raise ConfigError(
            f"{path} has no {_CONFIG_FILE}; expected the output folder of a training run, or a"
            " YAML file"
        )
    metadata = os.path.join(os.path.dirname(os.path.abspath(config)), METADATA_FILE)
    left_by_run = os.path.basename(config) == _CONFIG_FILE and os.path.lexists(metadata)
    cfg = load_cfg(config, opts, use_data=not left_by_run)
    if left_by_run:
        known = load_metadata(metadata)
        for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
            # Not by setattr: it compares with the value so far, and reads the data set for that.
            values = {k: v for k, v in known.as_dict().items() if k != "name"}
            MetadataCatalog.get(name).__dict__.update(values)
    choose_device(cfg)
    return cfg


def find_weights(cfg: CN, *, folder: str = "") -> str:
    """The last checkpoint of a run, else MODEL.WEIGHTS.

    Args:
        cfg: its OUTPUT_DIR and MODEL.WEIGHTS are read.
        folder: is looked at before OUTPUT_DIR.

    Raises:
        ConfigError: neither is there.
    """
    for candidate in (folder, cfg.OUTPUT_DIR):
        if candidate and os.path.isdir(candidate):
            reader = Checkpointer(torch.nn.Identity(), candidate, save_to_disk=False)
            if reader.has_checkpoint():
                return reader.get_checkpoint_file()
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError(
            f"no weights to predict with: {quoted(cfg.OUTPUT_DIR or folder)} (OUTPUT_DIR) has no"
            " checkpoint and MODEL.WEIGHTS is empty. Train first, or give --weights FILE"
        )
    return cfg.MODEL.WEIGHTS
