"""Why a Mask2Former misses objects: are their masks missing, or only their classes?

    python benchmarks/query_coverage.py --config-file CONFIG [--weights FILE] [--batches 8]
        [KEY VALUE ...]

For each class of the ground truth, over batches of the training pipeline on DATASETS.TEST: how many
segments there are and how large (median share of the image, and how many of TRAIN_NUM_POINTS
uniform points fall on one), how many of them some query's mask covers with an IoU above 0.5, how
many the query that the matcher assigns to them covers, and how often that query's class is right.
Placed queries are for things alone, so that stuff is left out there. Weights default to the last
checkpoint of OUTPUT_DIR.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import defaultdict
from itertools import islice
from typing import Any

import torch
from baselines import trained_model
from detectron2.data import MetadataCatalog
from detectron2.utils.logger import setup_logger
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from panoptic_ext.engine.device import choose_device
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.engine.trainer import Trainer
from panoptic_ext.errors import ConfigError, PanopticExtError
from panoptic_ext.modeling.mask_classification.targets import MaskTargets
from panoptic_ext.modeling.meta_arch.mask_former import PanopticExtMaskFormer

COVERED = 0.5  # IoU from which panoptic quality counts a segment as found


def planes_of(target: MaskTargets, size: tuple[int, int]) -> Tensor:
    """(N, h * w) bool: the targets at the centres of a grid."""
    y, x = ((torch.arange(n) + 0.5) / n for n in size)
    centres = torch.stack((x.expand(size[0], -1), y[:, None].expand(-1, size[1])), dim=-1)
    return target.sample(centres.view(-1, 2).to(target.labels.device)) >= 0.5


def iou_of(masks: Tensor, planes: Tensor) -> Tensor:
    """(Q, P) and (N, P) bool -> (Q, N); 0 where both are empty."""
    masks, planes = masks.float(), planes.float()
    both = masks @ planes.t()
    either = masks.sum(1)[:, None] + planes.sum(1) - both
    return both / either.clamp(min=1)


@torch.no_grad()
def look_at(model: PanopticExtMaskFormer, batch: list[dict[str, Any]]) -> list[tuple[Tensor, ...]]:
    """Of each image: labels, area shares, best IoU, the matched query's IoU and whether its class
    is right, for the targets that are matched; (M,) each."""
    images = model.preprocess_image(batch)
    outputs = model.sem_seg_head(model.backbone(images.tensor), aux=False)
    targets = model.criterion.query_targets(model.mask_targets(images, batch))
    all_masks = outputs.dense_masks()
    found = []
    for image, (queries, rows) in enumerate(model.criterion.match(outputs, targets)[0]):
        masks, target = all_masks[image], targets[image]
        planes = planes_of(target, (masks.shape[-2], masks.shape[-1]))[rows]
        iou = iou_of(masks.flatten(1) >= 0, planes)
        labels = target.labels[rows]
        right = outputs.pred_logits[image, queries].argmax(-1) == labels
        matched = iou[queries, torch.arange(len(rows))]
        found.append((labels, planes.float().mean(1), iou.amax(0), matched, right))
    return found


def table_of(found: list[tuple[Tensor, ...]], names: list[str], num_points: int) -> str:
    """A row a class, and one for all."""
    every = [torch.cat(column) for column in zip(*found, strict=True)]
    rows: dict[str, list[Tensor]] = defaultdict(list)
    for index in every[0].unique().tolist():
        rows[names[index]] = [column[every[0] == index] for column in every[1:]]
    rows["all"] = every[1:]
    lines = []
    for name, (share, best, matched, right) in rows.items():
        median = share.median().item()
        counts = [(best > COVERED).sum(), (matched > COVERED).sum(), right.sum()]
        lines.append([name, len(share), f"{median:.2%}", round(median * num_points)])
        lines[-1] += [f"{int(n)} ({int(n) / len(share):.0%})" for n in counts]
    head = ["class", "segments", "median area", "points", "some query", "its query", "class"]
    return tabulate(lines, headers=head, tablefmt="pipe", disable_numparse=True)


def run(args: argparse.Namespace) -> None:
    cfg = load_cfg(args.config_file, args.opts)
    cfg.defrost()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST
    choose_device(cfg)
    torch.manual_seed(0)
    model = trained_model(cfg, args.weights).eval()
    if not isinstance(model, PanopticExtMaskFormer):
        raise ConfigError(f"the model is {type(model).__name__}, expected a Mask2Former")
    loader = islice(iter(Trainer.build_train_loader(cfg)), args.batches)
    found = [row for batch in tqdm(loader, total=args.batches) for row in look_at(model, batch)]
    names = MetadataCatalog.get(cfg.DATASETS.TEST[0]).stuff_classes
    names = [names[i] for i in model.class_ids.tolist()]
    print(f"\n{len(found)} images of {cfg.DATASETS.TEST[0]}, IoU above {COVERED}\n")
    print(table_of(found, names, cfg.MODEL.MASK_FORMER.TRAIN_NUM_POINTS))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", default="", help="checkpoint; default: last of OUTPUT_DIR")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    args = parser.parse_args()
    setup_logger(name="panoptic_ext")
    logging.getLogger("detectron2").setLevel(logging.WARNING)
    try:
        run(args)
    except PanopticExtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
