"""Time of the mapper and of the targets of the loss: one id map against one mask per segment.

    OMP_NUM_THREADS=1 python benchmarks/mapper.py [--rounds 30] [--segments 14 60] [--cpu-time]
        [--profile]

The input is a JPEG of 480 x 640 and its label PNG; the augmentation is large-scale jitter to 1024 x
1024 (0.1 to 2.0) and random mirroring. Both sides take turns at the same scales; medians are
printed. The naive side does what is usual: the colours of the label map are augmented like an
image, and each segment gets a boolean mask, its box, and a plane of the (N, 1024, 1024) float
targets of the loss. "MB" is the pickled size of what a data worker sends to the main process. The
data worker (mapper) and the main process (targets) are timed separately.
"""

from __future__ import annotations

import argparse
import cProfile
import logging
import os
import pickle
import platform
import pstats
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from panoptic_ext import add_panoptic_ext_config
from panoptic_ext.data import write_id_map
from panoptic_ext.data.augmentation import build_augmentations
from panoptic_ext.data.dataset_mapper import PanopticDatasetMapper
from panoptic_ext.modeling.mask_classification.targets import build_mask_targets

HEIGHT, WIDTH, SIDE, CLASSES = 480, 640, 1024, 133
TARGET_RATIOS = {14: 4.0, 60: 12.0}  # wanted ratios by number of segments
Record = dict[str, Any]


def make_record(folder: Path, count: int) -> Record:
    """An image on disk and its label map of `count` segments with wavy borders."""
    rng = np.random.default_rng(count)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    waves = [6 * np.sin(a / 17 + b / 29 + 5 * k) for k, (a, b) in enumerate(((x, y), (y, x)))]
    centres = rng.uniform((0, 0), (HEIGHT, WIDTH), (count, 2))
    distances = [(y + waves[0] - cy) ** 2 + (x + waves[1] - cx) ** 2 for cy, cx in centres]
    nearest = np.argmin(distances, 0)
    ids = rng.choice(2**24 - 1, count, replace=False) + 1
    colours = rng.integers(0, 256, (count, 3))
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
    texture = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    noise = rng.normal(0, 6, (HEIGHT, WIDTH, 3))
    image = np.clip(0.5 * colours[nearest] + 0.5 * texture + noise, 0, 255).astype(np.uint8)
    Image.fromarray(image).save(folder / "image.jpg", quality=90)
    write_id_map(folder / "labels.png", ids[nearest].astype(np.int32))
    segments = [
        {"id": int(i), "category_id": n % CLASSES, "isthing": int(n % 2), "iscrowd": 0}
        for n, i in enumerate(ids)
    ]
    return {
        "file_name": str(folder / "image.jpg"),
        "pan_seg_file_name": str(folder / "labels.png"),
        "image_id": 1,
        "height": HEIGHT,
        "width": WIDTH,
        "segments_info": segments,
    }


class Naive:
    """One boolean mask per segment, from the data worker to the loss."""

    def __init__(self) -> None:
        self.augmentations = [
            T.ResizeScale(0.1, 2.0, SIDE, SIDE),
            T.FixedSizeCrop((SIDE, SIDE), pad_value=128.0),
            T.RandomFlip(),
        ]

    def map(self, record: Record) -> Record:
        image = detection_utils.read_image(record["file_name"], "RGB")
        colours = detection_utils.read_image(record["pan_seg_file_name"], "RGB")
        aug_input = T.AugInput(image)
        transforms = T.AugmentationList(self.augmentations)(aug_input)
        colours = transforms.apply_segmentation(colours).astype(np.int64)
        ids = colours[..., 0] + 256 * colours[..., 1] + 256**2 * colours[..., 2]
        classes, masks = [], []
        for segment in record["segments_info"]:
            if not segment["iscrowd"]:
                classes.append(segment["category_id"])
                masks.append(torch.from_numpy(ids == segment["id"]))
        instances = Instances(ids.shape)
        instances.gt_classes = torch.tensor(classes)
        bit_masks = BitMasks(torch.stack(masks))
        instances.gt_masks = bit_masks.tensor
        instances.gt_boxes = bit_masks.get_bounding_boxes()
        pixels = np.ascontiguousarray(aug_input.image.transpose(2, 0, 1))
        return {**record, "image": torch.from_numpy(pixels), "instances": instances}

    def targets(self, mapped: Record) -> torch.Tensor:
        masks = mapped["instances"].gt_masks
        padded = torch.zeros((len(masks), SIDE, SIDE))
        padded[:, : masks.shape[1], : masks.shape[2]] = masks
        return padded


class Ours:
    """One id map and a table."""

    def __init__(self) -> None:
        cfg = get_cfg()
        add_panoptic_ext_config(cfg)
        cfg.INPUT.AUGMENTATION = "lsj"
        self.map = PanopticDatasetMapper(
            is_train=True,
            augmentations=build_augmentations(cfg, True),
            image_format="RGB",
            targets=(),
        )
        self._classes = torch.arange(CLASSES)

    def targets(self, mapped: Record) -> Any:
        return build_mask_targets(
            mapped,
            task="panoptic",
            padded_size=(SIDE, SIDE),
            device=torch.device("cpu"),
            class_index=self._classes,
        )


def compare(count: int, options: argparse.Namespace, folder: Path) -> None:
    """Print one row."""
    record = make_record(folder, count)
    sides = (Naive(), Ours())
    now = time.process_time if options.cpu_time else time.perf_counter
    times: dict[tuple[int, str], list[float]] = defaultdict(list)
    sizes: dict[int, list[int]] = defaultdict(list)
    for number in range(options.rounds + 2):
        for which, side in enumerate(sides):
            np.random.seed(number)
            start = now()
            mapped = side.map(record)
            middle = now()
            side.targets(mapped)
            end = now()
            if number >= 2:
                times[which, "worker"].append(1000 * (middle - start))
                times[which, "main"].append(1000 * (end - middle))
                times[which, "both"].append(1000 * (end - start))
                sizes[which].append(len(pickle.dumps(mapped)))
            del mapped
        if sys.stderr.isatty() or number % 10 == 9:
            print(f"  {count} segments: round {number + 1}", file=sys.stderr, flush=True)
    ms = {key: statistics.median(values) for key, values in times.items()}
    cells = [f"{ms[0, part]:.1f} | {ms[1, part]:.1f}" for part in ("worker", "main", "both")]
    bytes_ = " | ".join(f"{statistics.median(sizes[i]) / 1e6:.1f}" for i in (0, 1))
    goal = f"{TARGET_RATIOS[count]}x" if count in TARGET_RATIOS else ""
    print(
        f"| {count} | {' | '.join(cells)} | {ms[0, 'both'] / ms[1, 'both']:.1f}x | {goal} "
        f"| {bytes_} |",
        flush=True,
    )


def profile(run: Callable[[], None]) -> None:
    """Print the functions in which a call spends most time."""
    profiler = cProfile.Profile()
    profiler.runcall(run)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(14)


def profile_ours(count: int, rounds: int, folder: Path) -> None:
    record, side = make_record(folder, count), Ours()

    def run() -> None:
        for number in range(rounds):
            np.random.seed(number)
            side.targets(side.map(record))

    run()
    profile(run)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--segments", type=int, nargs="+", default=[14, 60])
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", 1)))
    parser.add_argument("--cpu-time", action="store_true", help="processor time")
    parser.add_argument("--profile", action="store_true", help="also profile our side")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    print(
        f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}, load "
        f"{os.getloadavg()[0]}; ms, medians of {options.rounds} rounds\n"
    )
    print(
        "| segments | worker: naive | ours | main process: naive | ours | both: naive | ours "
        "| ratio | target | MB sent: naive | ours |"
    )
    print("|---:" * 11 + "|")
    with tempfile.TemporaryDirectory() as folder:
        for count in options.segments:
            compare(count, options, Path(folder))
        if options.profile:
            profile_ours(options.segments[0], options.rounds, Path(folder))


if __name__ == "__main__":
    main()
