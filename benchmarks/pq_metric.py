#!/usr/bin/env python
"""Speed of PQ as an object: `PanopticQuality` and torchmetrics', on the same maps in one run.

Both get the same random images from memory, in their own form: ours a map of ids and its segments,
torchmetrics a map of (class, instance) pairs. Each round updates both with every image and computes
the result. The table has medians over rounds; the ratio is that of each round.

The maps are such that both have the same rules, and both PQs are printed: they agree to the
precision of float32, in which torchmetrics computes an IoU. Elsewhere the rules differ:
- void of the prediction: torchmetrics leaves it out of unions and ignores a true segment that is
  mostly in it, so that a map gains by saying nothing; ours, as panopticapi, count it as missed;
- torchmetrics has no crowds;
- torchmetrics takes all segments of a stuff class in an image as one; ours, as panopticapi, do not;
- torchmetrics gives PQ, SQ and RQ; ours also gives causes, costs, sizes, confusion and intervals,
  whose counts the time of `update` includes.

torchmetrics is no requirement: `pip install torchmetrics`, or into a folder of its own with
`pip install --no-deps --target FOLDER torchmetrics lightning-utilities` and PYTHONPATH=FOLDER.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks.evaluation import regions
from panoptic_ext.evaluation import PanopticQuality

THINGS = range(80)
STUFF = range(80, 133)
# height, width, segments, images
SIZES = {"480 x 640": (480, 640, 25, 8), "1024 x 2048": (1024, 2048, 50, 3)}


@dataclass(frozen=True)
class Sample:
    """One image in the form of each side.

    Attributes:
        ids: predicted and true (H, W) ids, 0 is void.
        segments: predicted and true segments.
        pairs: predicted and true (1, H, W, 2) tensors of class and instance.
    """

    ids: tuple[np.ndarray, np.ndarray]
    segments: tuple[list[dict], list[dict]]
    pairs: tuple[torch.Tensor, torch.Tensor]


def sample(rng: np.random.Generator, height: int, width: int, number: int) -> Sample:
    """Ragged regions, of which a third are stuff, of a class each; void in the truth alone."""
    maps = regions(rng, height, width, number, 0.02 * height)
    num_stuff = number // 3
    stuff = rng.choice(np.array(STUFF), num_stuff, replace=False)
    classes = np.concatenate([[-1], stuff, rng.choice(np.array(THINGS), number - num_stuff)])
    # Void is a class that neither things nor stuff have.
    pairs = [np.stack([np.where(ids > 0, classes[ids], 999), ids], axis=-1) for ids in maps]
    segments = [
        [{"id": int(i), "category_id": int(classes[i])} for i in np.unique(ids) if i]
        for ids in maps
    ]
    return Sample(tuple(maps), tuple(segments), tuple(torch.from_numpy(p)[None] for p in pairs))


def ours(samples: list[Sample], convert: Callable) -> tuple[float, float]:
    """PQ in percent, and the seconds that it took."""
    inputs = [tuple(convert(ids) for ids in one.ids) for one in samples]
    begin = time.perf_counter()
    metric = PanopticQuality({**dict.fromkeys(THINGS, True), **dict.fromkeys(STUFF, False)})
    for one, (pred, truth) in zip(samples, inputs, strict=True):
        metric.update(pred, one.segments[0], truth, one.segments[1])
    result = metric.compute()["PQ"]
    return result, time.perf_counter() - begin


def theirs(samples: list[Sample]) -> tuple[float, float]:
    """The same of torchmetrics."""
    from torchmetrics.detection import PanopticQuality as Metric

    begin = time.perf_counter()
    metric = Metric(things=set(THINGS), stuffs=set(STUFF), allow_unknown_preds_category=True)
    for one in samples:
        metric.update(*one.pairs)
    result = 100 * float(metric.compute())
    return result, time.perf_counter() - begin


def measure(size: str, rounds: int) -> list[str]:
    """The rows of one size."""
    height, width, number, images = SIZES[size]
    rng = np.random.default_rng(0)
    samples = [sample(rng, height, width, number) for _ in range(images)]
    routes: dict[str, Callable[[], tuple[float, float]]] = {
        "torchmetrics": lambda: theirs(samples),
        "ours, numpy": lambda: ours(samples, lambda ids: ids),
        "ours, torch": lambda: ours(samples, torch.from_numpy),
    }
    found = {name: [route() for _ in range(1)] for name, route in routes.items()}  # warm
    for _ in range(rounds):
        for name, route in routes.items():
            found[name].append(route())
    rows = []
    for name, results in found.items():
        times = [seconds for _, seconds in results[1:]]
        ratios = [b / t for (_, b), t in zip(found["torchmetrics"][1:], times, strict=True)]
        milliseconds = 1000 * statistics.median(times) / images
        rows.append(
            f"| {size} | {name} | {milliseconds:.2f} | {statistics.median(ratios):.0f} |"
            f" {results[0][0]:.6f} |"
        )
    return rows


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    try:
        import torchmetrics
    except ImportError:
        raise SystemExit("torchmetrics is missing: pip install torchmetrics") from None
    torch.set_num_threads(1)
    print(
        f"{os.cpu_count()} CPU cores ({platform.machine()}), Python {platform.python_version()},"
        f" numpy {np.__version__}, torch {torch.__version__}, torchmetrics"
        f" {torchmetrics.__version__}; medians of {args.rounds} rounds, one thread.\n"
    )
    print("| size | side | ms an image | times as fast as torchmetrics | PQ |")
    print("|---|---|---:|---:|---:|")
    for size in SIZES:
        print("\n".join(measure(size, args.rounds)), flush=True)


if __name__ == "__main__":
    main()
