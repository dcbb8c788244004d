"""The zoo's Panoptic FPNs of Detectron2 are files that Detectron2's own checkpointer loads, too."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer

from panoptic_ext import download, model_zoo
from panoptic_ext.errors import CheckpointError, ConfigError
from panoptic_ext.model_zoo.entry import ZooEntry, read_entry
from panoptic_ext.model_zoo.separated_weights import contiguous_weights

NAME = "panoptic_fpn_R101_3x_coco"
WEIGHT, BIAS = "sem_seg_head.predictor.weight", "sem_seg_head.predictor.bias"


class SemanticHead(torch.nn.Module):
    """What a model with this head has of the file."""

    def __init__(self) -> None:
        super().__init__()
        self.sem_seg_head = torch.nn.ModuleDict({"predictor": torch.nn.Conv2d(8, 133, 1)})


def published(path: str, channels: int = 54) -> dict[str, np.ndarray]:
    """A file as in Detectron2's model zoo, at `path`, and its weights."""
    rng = np.random.default_rng(0)
    weights = {WEIGHT: rng.normal(size=(channels, 8, 1, 1)), BIAS: rng.normal(size=channels)}
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as stream:
        pickle.dump({"model": weights, "__author__": "Detectron2 Model Zoo"}, stream)
    return weights


def test_detectron2s_checkpointer_loads_it(own_zoo: Path) -> None:
    weights = published(download.cache_path(model_zoo.info(NAME).address))
    model, address = SemanticHead(), model_zoo.get_checkpoint_url(NAME)
    assert address == f"zoo://{NAME}"
    DetectionCheckpointer(model).load(address)
    bias = model.sem_seg_head["predictor"].bias.detach()
    assert torch.equal(bias[80:], torch.from_numpy(weights[BIAS][1:]))
    assert set(bias[:80].tolist()) == {float(weights[BIAS][0])}
    path = model_zoo.get_checkpoint(NAME)
    assert Path(path).is_relative_to(own_zoo) and path.endswith(".pth")


def test_another_file_is_refused(own_zoo: Path) -> None:
    published(download.cache_path(model_zoo.info(NAME).address), channels=19)
    with pytest.raises(CheckpointError, match=r"expected sem_seg_head.predictor.weight with 54"):
        model_zoo.get_checkpoint(NAME)


def test_other_classes_are_refused(tmp_path: Path) -> None:
    entry: ZooEntry = read_entry(model_zoo.info(NAME).path)
    other = ZooEntry(**{**vars(entry), "data_set": "cityscapes_panoptic_val"})
    with pytest.raises(ConfigError, match="data_set is cityscapes_panoptic_val"):
        contiguous_weights(other, str(tmp_path))
