"""Predicting many pictures: the one call beside a loop of Detectron2's DefaultPredictor.

    OMP_NUM_THREADS=1 python benchmarks/predict.py [--model small r50] [--images 50] [--repeat 3]
        [--cpu-time]

Both sides have Detectron2's PanopticFPN with the same random weights, of which 20 instances an
image are kept, and read the same JPEGs of 480 x 640. DefaultPredictor gets what cv2.imread reads;
`panoptic_ext.load` gets the paths and makes a `PanopticResult` of each. The sides take turns after
every ten pictures; the medians of these turns are printed. "first" is a process of its own: from
the start of Python to the result of one picture. With --cpu-time, seconds of the CPU are counted in
place of those of the clock, which other work on the machine disturbs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from panoptic_ext import load

ROOT = Path(__file__).resolve().parents[1]
NAME = "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml"
TURN = 10  # pictures of a side, before the other side goes on
RANDOM_WEIGHTS = [
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 20,
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 0.0, "MODEL.DEVICE", "cpu",
]  # fmt: skip
SMALL = [
    "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64,
    "INPUT.MIN_SIZE_TEST", 320, "INPUT.MAX_SIZE_TEST", 533,
]  # fmt: skip
MODELS = {"small": [*RANDOM_WEIGHTS, *SMALL], "r50": RANDOM_WEIGHTS}

# What each side needs from the start of Python to the first result.
FIRST = {
    "DefaultPredictor": """
        import cv2, json, sys
        from detectron2 import model_zoo
        from detectron2.engine import DefaultPredictor
        name, weights, opts, picture = json.loads(sys.argv[1])
        cfg = model_zoo.get_config(name)
        cfg.merge_from_list([*opts, "MODEL.WEIGHTS", weights])
        DefaultPredictor(cfg)(cv2.imread(picture))["panoptic_seg"]
    """,
    "load": """
        import json, sys
        import panoptic_ext
        name, weights, opts, picture = json.loads(sys.argv[1])
        panoptic_ext.load(name, weights, opts=opts)(picture)
    """,
}


def make_pictures(folder: Path, count: int) -> list[str]:
    """Smooth random pictures with some noise, as JPEGs."""
    paths = []
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC))
        pixels = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
        paths.append(str(folder / f"{number:03d}.jpg"))
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


def make_weights(opts: list, path: Path) -> CfgNode:
    """Save random weights; the config of Detectron2 that has them."""
    cfg = model_zoo.get_config(NAME)
    cfg.merge_from_list([*opts, "MODEL.WEIGHTS", str(path)])
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, path)
    return cfg


def compare_many(name: str, cfg: CfgNode, pictures: list[str], now: Callable[[], float]) -> None:
    """Print a row for each side."""
    default = DefaultPredictor(cfg)
    model = load(NAME, cfg.MODEL.WEIGHTS, opts=MODELS[name])
    sides: dict[str, Callable[[list[str]], object]] = {
        "loop of DefaultPredictor": lambda paths: [default(cv2.imread(path)) for path in paths],
        "load, batch_size=1": lambda paths: list(model(paths, progress=False)),
        "load, batch_size=8": lambda paths: list(model(paths, batch_size=8, progress=False)),
    }
    seconds: dict[str, list[float]] = defaultdict(list)
    for run in sides.values():
        run(pictures[:2])
    for start in range(0, len(pictures), TURN):
        paths = pictures[start : start + TURN]
        for side, run in sides.items():
            began = now()
            run(paths)
            seconds[side].append((now() - began) / len(paths))
    base = statistics.median(seconds["loop of DefaultPredictor"])
    for side, values in seconds.items():
        median = statistics.median(values)
        print(
            f"| {name} | {side} | {len(pictures)} | {1000 * median:.0f} | {base / median:.2f} |",
            flush=True,
        )


def compare_first(
    name: str, cfg: CfgNode, picture: str, repeat: int, now: Callable[[], float]
) -> None:
    """Print a row for each side."""
    argument = json.dumps([NAME, cfg.MODEL.WEIGHTS, MODELS[name], picture])
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeat + 1):
        for side, code in FIRST.items():
            lines = "\n".join(line.strip() for line in code.splitlines())
            command = [sys.executable, "-c", lines, argument]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            began = now()
            subprocess.run(command, check=True, capture_output=True, env=environment)
            seconds[side].append(now() - began)
    base = statistics.median(seconds["DefaultPredictor"][1:])
    for side, values in seconds.items():
        median = statistics.median(values[1:])  # the first one reads files from the disk
        print(
            f"| {name} | {side}, first | 1 | {1000 * median:.0f} | {base / median:.2f} |",
            flush=True,
        )


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=3, help="processes of the first call")
    parser.add_argument("--cpu-time", action="store_true", help="of the CPU, not the clock")
    options = parser.parse_args()
    now = cpu_seconds if options.cpu_time else time.perf_counter
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, {os.cpu_count()} CPU cores\n"
    )
    print("| model | side | pictures | ms a picture | times as fast |")
    print("|---|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        pictures = make_pictures(Path(folder), options.images)
        for name in options.model:
            cfg = make_weights(MODELS[name], Path(folder) / f"{name}.pth")
            compare_many(name, cfg, pictures, now)
            compare_first(name, cfg, pictures[0], options.repeat, now)


if __name__ == "__main__":
    main()
