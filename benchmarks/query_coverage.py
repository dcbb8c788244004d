"""Count whether a Mask2Former misses objects by their masks or only by their classes.

    python benchmarks/query_coverage.py --config-file CONFIG [--weights FILE] [--batches 8]
        [KEY VALUE ...]

The batches come from the training pipeline on DATASETS.TEST. For each class of the ground truth,
the table has
- the number of segments and their median size, as a share of the image and as the number of
  TRAIN_NUM_POINTS uniform points that fall on one,
- how many of them the mask of any query covers with an IoU above 0.5,
- how many of them the query that is matched to them covers,
- how often the class of that query is right.
Placed queries predict things only, so stuff is left out for them. Weights default to the last
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

COVERED_IOU = 0.5  # panoptic quality matches segments with an IoU above this


def masks_on_grid(target: MaskTargets, size: tuple[int, int]) -> Tensor:
    """(N, h * w) bool: the masks of the targets at the centres of a grid's cells."""
    y, x = ((torch.arange(n) + 0.5) / n for n in size)
    centres = torch.stack((x.expand(size[0], -1), y[:, None].expand(-1, size[1])), dim=-1)
    return target.sample(centres.view(-1, 2).to(target.labels.device)) >= 0.5


def iou_of(masks: Tensor, target_masks: Tensor) -> Tensor:
    """(Q, P) and (N, P) bool -> (Q, N); 0 where both are empty."""
    masks, target_masks = masks.float(), target_masks.float()
    both = masks @ target_masks.t()
    either = masks.sum(1)[:, None] + target_masks.sum(1) - both
    return both / either.clamp(min=1)


@torch.no_grad()
def coverage_of(
    model: PanopticExtMaskFormer, batch: list[dict[str, Any]]
) -> list[tuple[Tensor, ...]]:
    """For each image, five (M,) tensors about its matched targets: class, area as a share of the
    image, best IoU of any query, IoU of the matched query, and whether that query's class is right.
    """
    images = model.preprocess_image(batch)
    outputs = model.sem_seg_head(model.backbone(images.tensor), aux=False)
    targets = model.criterion.query_targets(model.mask_targets(images, batch))
    all_masks = outputs.dense_masks()
    columns = []
    for image, (queries, rows) in enumerate(model.criterion.match(outputs, targets)[0]):
        masks, target = all_masks[image], targets[image]
        target_masks = masks_on_grid(target, (masks.shape[-2], masks.shape[-1]))[rows]
        iou = iou_of(masks.flatten(1) >= 0, target_masks)
        labels = target.labels[rows]
        right = outputs.pred_logits[image, queries].argmax(-1) == labels
        matched = iou[queries, torch.arange(len(rows))]
        columns.append((labels, target_masks.float().mean(1), iou.amax(0), matched, right))
    return columns


def table_of(images: list[tuple[Tensor, ...]], names: list[str], num_points: int) -> str:
    """A Markdown table with a row for each class and one for all."""
    columns = [torch.cat(column) for column in zip(*images, strict=True)]
    rows: dict[str, list[Tensor]] = defaultdict(list)
    for index in columns[0].unique().tolist():
        rows[names[index]] = [column[columns[0] == index] for column in columns[1:]]
    rows["all"] = columns[1:]
    lines = []
    for name, (share, best, matched, right) in rows.items():
        median = share.median().item()
        counts = [(best > COVERED_IOU).sum(), (matched > COVERED_IOU).sum(), right.sum()]
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
    images = [
        image for batch in tqdm(loader, total=args.batches) for image in coverage_of(model, batch)
    ]
    names = MetadataCatalog.get(cfg.DATASETS.TEST[0]).stuff_classes
    names = [names[i] for i in model.class_ids.tolist()]
    print(f"\n{len(images)} images of {cfg.DATASETS.TEST[0]}, IoU above {COVERED_IOU}\n")
    print(table_of(images, names, cfg.MODEL.MASK_FORMER.TRAIN_NUM_POINTS))


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
