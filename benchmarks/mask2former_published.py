"""The published Mask2Former, from a checkout, as the peer of benchmarks/mask2former.py.

The compiled operator is not needed. An empty module replaces the extension, so the attention falls
back to the same sum written with `grid_sample`, as it does on every CPU.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.structures import Instances
from mask2former_sides import (
    CLASSES,
    OUR_PARTS,
    OVERLAP,
    SEGMENTS,
    THINGS,
    Clock,
    Size,
    Stopwatch,
    make_image,
    make_optimizer,
    make_truth,
)
from torch import Tensor, nn

__all__ = ["Published"]

NAME = "benchmark_published_mask2former"
CONFIG = "configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
# The pixel decoder is called by its `forward_features`, for which torch runs no hooks.
PARTS = {part: name for part, name in OUR_PARTS.items() if part != "pixel decoder"}


def import_published(folder: Path) -> None:
    """Register the published modules with Detectron2."""
    if not (folder / "mask2former").is_dir():
        raise SystemExit(f"{folder} has no folder mask2former; give a checkout of Mask2Former")
    sys.modules.setdefault("MultiScaleDeformableAttention", types.ModuleType("no_extension"))
    # An empty package instead of its `__init__`, which would register data sets.
    package = types.ModuleType("mask2former")
    package.__path__ = [str(folder / "mask2former")]
    sys.modules["mask2former"] = package
    importlib.import_module("mask2former.modeling")
    importlib.import_module("mask2former.maskformer_model")


def make_published(folder: Path, ours: nn.Module, outputs: str) -> nn.Module:
    """Build the published model of its config, with the weights of ours."""
    import_published(folder)
    things = {i: i for i in range(THINGS)}
    MetadataCatalog.get(NAME).thing_dataset_id_to_contiguous_id = things
    cfg = get_cfg()
    add_deeplab_config(cfg)
    importlib.import_module("mask2former.config").add_maskformer2_config(cfg)
    cfg.merge_from_file(str(folder / CONFIG))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = CLASSES
    test = cfg.MODEL.MASK_FORMER.TEST
    test.SEMANTIC_ON = test.INSTANCE_ON = outputs == "all"
    test.OVERLAP_THRESHOLD = OVERLAP
    cfg.DATASETS.TRAIN = (NAME,)
    model = build_model(cfg).eval()
    weights = ours.state_dict()
    for part in ("sem_seg_head", "sem_seg_head.predictor"):
        # Otherwise the published head renames weights that already have the right names.
        weights._metadata[part]["version"] = 2
    model.load_state_dict(weights)
    return model


class Published:
    """Calls of the published model."""

    def __init__(
        self,
        folder: Path,
        ours: nn.Module,
        size: Size,
        batch: int,
        device: str,
        clock: Clock,
        outputs: str,
    ) -> None:
        self.model = model = make_published(folder, ours, outputs).to(device)
        self.watch = Stopwatch(model, PARTS, clock)
        decoder = model.sem_seg_head.pixel_decoder
        decoder.forward_features = self._timed("pixel decoder", decoder.forward_features)
        ids, classes = make_truth(size)
        truth = Instances(size)
        truth.gt_classes = classes
        truth.gt_masks = ids == torch.arange(1, SEGMENTS + 1)[:, None, None]
        self.inputs = [
            {"image": make_image(size, i).to(device), "instances": truth} for i in range(batch)
        ]
        self.optimizer = make_optimizer(model)

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            self.watch.start(part)
            result = function(*args)
            self.watch.stop(part)
            return result

        return timed

    def infer(self) -> Any:
        start, times = self.watch.now(), self.watch.times
        result = self.model(self.inputs)
        total = 1000 * (self.watch.now() - start)
        parts = [times[part][-1] for part in ("backbone", "pixel decoder", "decoder")]
        times["post-processing"].append(total - sum(parts))  # with the image's normalization
        return result

    def outputs(self) -> tuple[Tensor, Tensor]:
        """(B, Q, K + 1) class and (B, Q, h, w) mask logits."""
        images = [(x["image"] - self.model.pixel_mean) / self.model.pixel_std for x in self.inputs]
        outputs = self.model.sem_seg_head(self.model.backbone(torch.stack(images)))
        return outputs["pred_logits"], outputs["pred_masks"]

    def loss(self) -> Tensor:
        self.model.train()
        return torch.stack(list(self.model(self.inputs).values())).sum()
