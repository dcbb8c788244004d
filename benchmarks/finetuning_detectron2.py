"""Detectron2's own PanopticFPN and DefaultTrainer as a peer of benchmarks/finetuning.py.

As a user of Detectron2 would do it: its published config, mapper, model, optimizer and schedule, on
data in its "separated" form, which is made from the COCO panoptic files as its
prepare_panoptic_fpn.py does it (things 0, stuff from 1 on, void 255; instances as run lengths). The
backbone is timm's EfficientNet-Lite0 below Detectron2's FPN. The evaluator alone is ours.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import timm
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json, load_sem_seg
from detectron2.data.datasets.coco_panoptic import merge_to_panoptic
from detectron2.engine import DefaultTrainer
from detectron2.engine.hooks import HookBase
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.solver.build import get_default_optimizer_params
from detectron2.utils.env import seed_all_rng
from PIL import Image
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from panoptic_ext.data import PanopticMetadata, read_id_map
from panoptic_ext.evaluation import PanopticEvaluator
from panoptic_ext.visualization.contact_sheet import pq_contact_sheet

__all__ = ["SETTINGS", "Setting", "register_separated", "train"]

BACKBONE, WEIGHTS = "tf_efficientnet_lite0", "zoo://backbones/efficientnet_lite0"
SHEET_ROWS = 4


@dataclass(frozen=True)
class Setting:
    """One way to train.

    Attributes:
        optimizer: "sgd" or "adamw".
        batch: images per step.
        rate: learning rate.
        keys: other config keys -> values.
        facade, nuclei: those of one data set.
        warmup: share of the iterations in which the learning rate rises.
    """

    optimizer: str = "sgd"
    batch: int = 4
    rate: float = 0.005
    warmup: float = 0.1
    keys: dict[str, Any] = field(default_factory=dict)
    facade: dict[str, Any] = field(default_factory=dict)
    nuclei: dict[str, Any] = field(default_factory=dict)


# Small things of nuclei are enlarged to about twice their size, as in our configs, and need many
# detections, whichever the heads. The published least area of stuff, 4096, is for larger images.
NUCLEI = {
    "MODEL.ANCHOR_GENERATOR.SIZES": [[16], [32], [64], [128], [256]],
    "MODEL.RPN.POST_NMS_TOPK_TEST": 800,
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": 64,
    "TEST.DETECTIONS_PER_IMAGE": 500,
    "INPUT.MIN_SIZE_TRAIN": [240, 280, 320, 360, 400],
    "INPUT.MIN_SIZE_TEST": 512,
    "INPUT.MAX_SIZE_TEST": 1024,
    "INPUT.CROP.ENABLED": True,
    "INPUT.CROP.TYPE": "absolute",
    "INPUT.CROP.SIZE": [160, 160],
}
# Crops at about the photographs' scale: more steps in the same time. Detectron2 crops before
# it resizes.
CROPS = {
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": 512,
    "INPUT.MIN_SIZE_TEST": 512,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[16], [32], [64], [128], [256]],
    "INPUT.MIN_SIZE_TRAIN": [256, 288, 320, 352, 384],
    "INPUT.CROP.ENABLED": True,
    "INPUT.CROP.TYPE": "absolute",
    "INPUT.CROP.SIZE": [288, 288],
}
FEWER_REGIONS = {
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 500,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 250,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 128,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 64,
}
NARROW = {
    **FEWER_REGIONS,
    "MODEL.FPN.OUT_CHANNELS": 64,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 256,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 2,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 64,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 64,
}
CLIPPED = {
    "SOLVER.CLIP_GRADIENTS.ENABLED": True,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "norm",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 1.0,
}
ADAMW = {
    **CLIPPED,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
    "SOLVER.WEIGHT_DECAY": 0.05,
}

SETTINGS = {
    # As published: SGD of 0.02 for 16 images, steps at 2/3 and 8/9, heads of 256 channels; but with
    # an eighth of its 512 regions an image, for shorter steps. Unclipped, both diverge on facade.
    "wide": Setting(
        batch=2, rate=0.0025, keys={**FEWER_REGIONS, **CLIPPED}, facade=CROPS, nuclei=NUCLEI
    ),
    "narrow": Setting(batch=2, rate=0.005, keys={**NARROW, **CLIPPED}, facade=CROPS, nuclei=NUCLEI),
    "narrow-adamw": Setting(
        "adamw", 2, 1e-3, keys={**NARROW, **ADAMW}, facade=CROPS, nuclei=NUCLEI
    ),
    "narrow-adamw-slow": Setting(
        "adamw", 2, 3e-4, keys={**NARROW, **ADAMW}, facade=CROPS, nuclei=NUCLEI
    ),
}


class TimmFeatures(Backbone):
    """The feature maps of a timm model at strides 4 to 32, res2 to res5."""

    def __init__(self, name: str, *, freeze_at: int, frozen_norms: bool) -> None:
        super().__init__()
        net = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4))
        self.net = freeze_batch_norm_2d(net) if frozen_norms else net
        if freeze_at:
            # FREEZE_AT 2 means the stem and res2, which ends with the second stage of blocks.
            for part in (net.conv_stem, net.bn1, *net.blocks[:freeze_at]):
                part.requires_grad_(False)
        self._out_features = [f"res{i}" for i in range(2, 6)]
        channels, strides = net.feature_info.channels(), net.feature_info.reduction()
        self._out_feature_channels = dict(zip(self._out_features, channels, strict=True))
        self._out_feature_strides = dict(zip(self._out_features, strides, strict=True))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._out_features, self.net(x), strict=True))


@BACKBONE_REGISTRY.register()
def build_benchmark_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Detectron2's FPN on timm's EfficientNet-Lite0, as its build_resnet_fpn_backbone."""
    pretrained = bool(cfg.MODEL.WEIGHTS)
    bottom_up = TimmFeatures(
        BACKBONE, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT, frozen_norms=pretrained
    )
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


class StepHook(HookBase):
    """Calls a function after every step."""

    def __init__(self, on_step: Callable[[], None]) -> None:
        self._on_step = on_step

    def after_step(self) -> None:
        self._on_step()


class Trainer(DefaultTrainer):
    """DefaultTrainer with the evaluator that all sides share, and AdamW if asked for."""

    optimizer_name = "sgd"

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        if cls.optimizer_name == "sgd":
            return super().build_optimizer(cfg, model)
        groups = get_default_optimizer_params(model, weight_decay_norm=0.0)
        adamw = torch.optim.AdamW(groups, cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)
        largest = cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE
        adamw.register_step_pre_hook(
            lambda *_: nn.utils.clip_grad_norm_(model.parameters(), largest) and None
        )
        return adamw

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> PanopticEvaluator:
        return SheetEvaluator(dataset_name, cfg.OUTPUT_DIR, keep_predictions=SHEET_ROWS)


class SheetEvaluator(PanopticEvaluator):
    """Draws the sheet of worst and best images after every evaluation."""

    def evaluate(self) -> Any:
        results = super().evaluate()
        path = f"{self._output_dir}/contact_sheet.png"
        pq_contact_sheet(self, self.truth.dataset_name, path, SHEET_ROWS)
        return results


def register_separated(name: str, folder: Path) -> str:
    """Register a data set of ours as Detectron2 wants it; return the new name.

    Args:
        name: of a registered data set in COCO panoptic format.
        folder: gets its instances as JSON and its stuff as PNGs.
    """
    separated, ours = f"{name}_separated", MetadataCatalog.get(name)
    if separated in DatasetCatalog:
        return separated
    assert isinstance(ours, PanopticMetadata)
    info = json.loads(Path(ours.panoptic_json).read_text(encoding="utf-8"))
    things = sorted(c["id"] for c in info["categories"] if c["isthing"])
    stuff = sorted(c["id"] for c in info["categories"] if not c["isthing"])
    names = {c["id"]: c["name"] for c in info["categories"]}
    stuff_number = {dataset_id: i + 1 for i, dataset_id in enumerate(stuff)}
    number = {**dict.fromkeys(things, 0), **stuff_number}
    instances, semantic = folder / f"{name}.json", folder / name
    if not instances.is_file():
        semantic.mkdir(parents=True, exist_ok=True)
        _convert(info, Path(ours.panoptic_root), number, semantic, instances)
    suffix = Path(info["images"][0]["file_name"]).suffix[1:]
    images = ours.image_root
    DatasetCatalog.register(
        separated,
        lambda: merge_to_panoptic(
            load_coco_json(str(instances), images, separated),
            load_sem_seg(str(semantic), images, image_ext=suffix),
        ),
    )
    MetadataCatalog.get(separated).set(
        panoptic_json=ours.panoptic_json,
        panoptic_root=ours.panoptic_root,
        thing_dataset_id_to_contiguous_id={c: i for i, c in enumerate(things)},
        stuff_dataset_id_to_contiguous_id=number,
        thing_classes=[names[c] for c in things],
        stuff_classes=["things", *(names[c] for c in stuff)],
        ignore_label=255,
    )
    return separated


def _convert(
    info: dict[str, Any], pngs: Path, number: dict[int, int], semantic: Path, instances: Path
) -> None:
    """Write the stuff of every image as a PNG, and then all things as COCO instances."""
    annotations: list[dict[str, Any]] = []
    files = {image["id"]: image["file_name"] for image in info["images"]}
    for annotation in info["annotations"]:
        ids = read_id_map(pngs / annotation["file_name"])
        stuff = np.full(ids.shape, 255, np.uint8)
        for segment in annotation["segments_info"]:
            mask, category = ids == segment["id"], segment["category_id"]
            stuff[mask] = number[category]
            if number[category] == 0:
                rle = mask_util.encode(np.asfortranarray(mask))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": annotation["image_id"],
                        "category_id": category,
                        "iscrowd": segment.get("iscrowd", 0),
                        "area": int(mask.sum()),
                        "bbox": [float(value) for value in mask_util.toBbox(rle)],
                        "segmentation": {**rle, "counts": rle["counts"].decode()},
                    }
                )
        name = Path(files[annotation["image_id"]]).with_suffix(".png").name
        Image.fromarray(stuff).save(semantic / name)
    things = [c for c in info["categories"] if number[c["id"]] == 0]
    content = {"images": info["images"], "categories": things, "annotations": annotations}
    instances.write_text(json.dumps(content), encoding="utf-8")


def make_cfg(
    setting: Setting, names: tuple[str, str], folder: Path, iterations: int, *, data: str
) -> CfgNode:
    """The config of a training but for its weights; `names` are of separated data sets."""
    cfg = model_zoo.get_config("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml")
    metadata = MetadataCatalog.get(names[0])
    values = {
        "OUTPUT_DIR": str(folder),
        "DATASETS.TRAIN": names[:1],
        "DATASETS.TEST": names[1:],
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.FORMAT": "RGB",
        "INPUT.MASK_FORMAT": "bitmask",
        "MODEL.DEVICE": "cpu",
        "MODEL.PIXEL_MEAN": [127.0] * 3,
        "MODEL.PIXEL_STD": [128.0] * 3,
        "MODEL.BACKBONE.NAME": "build_benchmark_timm_fpn_backbone",
        "MODEL.ROI_HEADS.NUM_CLASSES": len(metadata.thing_classes),
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": len(metadata.stuff_classes),
        "SOLVER.IMS_PER_BATCH": setting.batch,
        "SOLVER.BASE_LR": setting.rate,
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.STEPS": [iterations * 2 // 3, iterations * 8 // 9],
        "SOLVER.WARMUP_ITERS": round(setting.warmup * iterations),
        "SOLVER.CHECKPOINT_PERIOD": 50,
        "TEST.EVAL_PERIOD": max(1, -(-iterations // 4)),
        **setting.keys,
        **getattr(setting, data),
    }
    for key, value in values.items():
        cfg.merge_from_list([key, value])
    return cfg


def train(
    setting: Setting,
    names: tuple[str, str],
    folder: Path,
    iterations: int,
    *,
    data: str = "facade",
    pretrained: bool = True,
    seed: int = 1,
    on_step: Callable[[], None] | None = None,
) -> None:
    """Train, or go on with a training that was stopped; metrics.json gets the evaluations.

    Args:
        setting: how.
        names: data sets of ours to train on and to evaluate with.
        folder: of the run; the separated data are kept two folders above.
        iterations: of the whole training.
        data: whose keys of the setting are taken.
        pretrained: False begins with random weights, whose norms and stem learn too.
        seed: of weights and data.
        on_step: called after every step.
    """
    separated = folder.parent.parent / "separated"
    train_name, test_name = (register_separated(name, separated) for name in names)
    cfg = make_cfg(setting, (train_name, test_name), folder, iterations, data=data)
    cfg.SEED = seed
    cfg.MODEL.WEIGHTS = WEIGHTS if pretrained else ""
    if not pretrained:
        cfg.MODEL.BACKBONE.FREEZE_AT = 0
    seed_all_rng(seed)
    Trainer.optimizer_name = setting.optimizer
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    if on_step is not None:
        trainer.register_hooks([StepHook(on_step)])
    trainer.train()
