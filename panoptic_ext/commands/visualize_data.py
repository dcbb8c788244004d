"""Draw the ground truth of data sets: as it lies on disk, or as the model sees it.

    panoptic-ext data visualize --config-file my.yaml
    panoptic-ext data visualize --datasets shapes_panoptic_val --source raw --num 8

An image that cannot be drawn is named with the reason, and the others are drawn all the same.

Exit code: 0 all drawn, 2 an error.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import convert_image_to_rgb
from tqdm import tqdm

from panoptic_ext.commands.command_line import (
    command_main,
    command_parser,
    non_negative_int,
    split_options,
)
from panoptic_ext.commands.drawing_options import add_drawing_options, take_drawing_options
from panoptic_ext.data import PanopticDatasetMapper, get_metadata, get_records
from panoptic_ext.data.donors import build_donors
from panoptic_ext.data.image_files import read_image
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.errors import ConfigError
from panoptic_ext.many_files import ManyFiles, failure_line
from panoptic_ext.visualization import Pictures, ground_truth_segments, save_picture
from panoptic_ext.visualization.instance_masks import instance_segments


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("data visualize", __doc__, config_values=True)
    add = parser.add_argument
    add(
        "--config-file",
        default="",
        help="YAML file; without it, Detectron2's default augmentations",
    )
    add("--datasets", nargs="+", default=[], help="registered names; default: DATASETS.TRAIN")
    add("--source", choices=("mapper", "raw"), default="mapper", help="augmented, or as on disk")
    add("--num", type=non_negative_int, default=16, help="pictures of each data set; 0: all")
    add(
        "--seed",
        type=non_negative_int,
        default=0,
        help="of the choice of images and of the augmentations",
    )
    add("--output", default="output/visualize_data", help="folder for the pictures")
    add_drawing_options(parser)
    args = parser.parse_args(argv)
    args.datasets, args.opts = split_options(
        args.datasets, args.opts, is_value=DatasetCatalog.__contains__
    )
    args.drawing = take_drawing_options(args)
    return args


@command_main(parse_args, output=lambda args: args.output)
def main(args: argparse.Namespace) -> int:
    """Draw every data set; returns 0, or 2 if some images failed."""
    cfg = load_cfg(args.config_file, args.opts, use_data=False)
    names = args.datasets or list(cfg.DATASETS.TRAIN)
    if not names:
        raise ConfigError("no data set to draw; give --datasets, or a config with DATASETS.TRAIN")
    failed: dict[str, str] = {}
    for name in names:
        folder = os.path.join(args.output, name)
        os.makedirs(folder, exist_ok=True)
        images = draw_dataset(name, cfg, args, folder)
        failed.update(images.failed)
        left = f", {images.left} left" if images.stop else ""
        print(f"{name}: {images.done} images done, {len(images.failed)} failed{left}")
        print(f"{name}: pictures in {folder}")
        if images.stop:
            break
    for name, reason in failed.items():
        print(f"failed: {failure_line(name, reason)}", file=sys.stderr)
    images.stop.check(
        "stopped; the pictures drawn so far stay, and the same command draws all of them anew "
        "(--num N: N of each data set)"
    )
    return 2 if failed else 0


def draw_dataset(
    name: str, cfg: CfgNode, args: argparse.Namespace, folder: str
) -> ManyFiles[tuple[int, dict[str, Any]]]:
    """Draw `args.num` records of one data set into `folder`; returns the drawn and failed ones."""
    records, pictures = get_records(name), Pictures(get_metadata(name), args.drawing)
    count = min(args.num or len(records), len(records))
    chosen = np.random.default_rng(args.seed).permutation(len(records))[:count]
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN = (name,)
    mapper = PanopticDatasetMapper(cfg, True)
    donors = build_donors(cfg, records) if args.source == "mapper" else None

    def draw(numbered: tuple[int, dict[str, Any]]) -> None:
        number, record = numbered
        sample = None
        if args.source == "mapper":
            # Detectron2's augmentations draw from numpy's global generator. A seed for each image
            # keeps its picture the same whichever others are drawn.
            np.random.seed((args.seed + number) % 2**32)
            sample = mapper(record, donors)
            if sample is None:
                return
        view = raw_view(record) if sample is None else mapped_view(sample, cfg.INPUT.FORMAT)
        stem = os.path.splitext(os.path.basename(record["file_name"]))[0]
        save_picture(os.path.join(folder, f"{number:06d}_{stem}.jpg"), pictures.draw(*view))

    images = ManyFiles[tuple[int, dict[str, Any]]](lambda numbered: numbered[1]["file_name"])
    todo = [(number, records[number]) for number in sorted(chosen.tolist())]
    for _ in tqdm(images.results(todo, draw), desc=name, total=len(todo), unit="image"):
        pass
    if line := pictures.unlabelled_line():
        print(f"{name}: {line}")
    return images


def raw_view(record: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
    """RGB image, id map and segments as on disk."""
    return (read_image(record["file_name"], "RGB"), *ground_truth_segments(record))


def mapped_view(
    sample: dict[str, Any], image_format: str
) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
    """RGB image, id map and segments as a model gets them from the mapper."""
    image = convert_image_to_rgb(sample["image"].permute(1, 2, 0), image_format)
    if "segments" not in sample:
        return (image, *instance_segments(sample["instances"]))
    rows = sample["segments"]
    columns = (rows.gt_classes, rows.gt_isthing, rows.gt_iscrowd)
    # In the mapper's id map, row i of the table of segments has the id i + 1.
    segments = [
        {"id": i + 1, "category_id": category, "isthing": isthing, "iscrowd": int(iscrowd)}
        for i, (category, isthing, iscrowd) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True)
        )
    ]
    return image, sample["panoptic_ids"].numpy(), segments
