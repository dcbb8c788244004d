"""Panoptic inference from queries: time and memory against the published steps, written naively.

    python benchmarks/mask_inference.py [--threads 2] [--repeats 5] [--cpu-time]

100 queries of 256 x 256 become a map of 1024 x 1024. "noise" is the worst case, in which all kept
queries compete for every pixel. "objects" has one compact mask per query, as trained models do.
Ratios are of medians from one run; memory is the peak above what was held before the call.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peak_memory import peak_growth
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from panoptic_ext.postprocessing import panoptic_inference
from tests.postprocessing import naive_mask_inference as naive

QUERIES, CLASSES, CELLS, PIXELS = 100, 133, 256, 1024
THINGS = set(range(80))
SIZES = {
    "image_size": (PIXELS, PIXELS),
    "padded_size": (PIXELS, PIXELS),
    "output_size": (PIXELS, PIXELS),
}
THRESHOLDS = {"object_mask_threshold": 0.8, "overlap_threshold": 0.8}


def make_inputs(kept: int, kind: str) -> tuple[Tensor, Tensor]:
    """Class logits (Q, K + 1) of which `kept` are above the threshold, and mask logits."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(QUERIES, CLASSES + 1)
    logits[:, -1] = 12.0
    order = torch.randperm(QUERIES, generator=generator)[:kept]
    logits[order, -1] = 0.0
    labels = torch.randint(0, CLASSES, (kept,), generator=generator)
    logits[order, labels] = 8.0 + 2 * torch.rand(kept, generator=generator)
    if kind == "noise":
        return logits, 4 * torch.randn(QUERIES, CELLS, CELLS, generator=generator)
    y, x = torch.meshgrid(torch.arange(CELLS), torch.arange(CELLS), indexing="ij")
    centres = torch.rand(QUERIES, 2, 1, 1, generator=generator) * CELLS
    radius = 8 + 40 * torch.rand(QUERIES, 1, 1, generator=generator)
    distance = ((y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2).sqrt()
    return logits, (radius - distance).clamp(-12, 12)


def run_naive(mask_cls: Tensor, mask_pred: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
    masks = naive.resize(mask_pred, **SIZES)
    return naive.panoptic(mask_cls, masks, THINGS, *THRESHOLDS.values())


def run_ours(mask_cls: Tensor, mask_pred: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
    return panoptic_inference(mask_cls, mask_pred, thing_ids=THINGS, **SIZES, **THRESHOLDS)


def milliseconds(call: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = clock()
        call()
        times.append(clock() - start)
    return 1000 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time, for a busy machine; 1 thread"
    )
    arguments = parser.parse_args()
    if arguments.cpu_time:
        arguments.threads = 1
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads, {QUERIES} x {CELLS} x {CELLS}")
    print("| masks | kept | naive ms | ours ms | ratio | naive MiB | ours MiB | differing pixels |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in ("noise", "objects"):
        for kept in (5, 30, 80):
            inputs = make_inputs(kept, kind)
            ours_peak = peak_growth(lambda: run_ours(*inputs))  # noqa: B023
            ours = milliseconds(lambda: run_ours(*inputs), arguments.repeats, clock)  # noqa: B023
            naive_peak = peak_growth(lambda: run_naive(*inputs))  # noqa: B023
            slow = milliseconds(lambda: run_naive(*inputs), arguments.repeats, clock)  # noqa: B023
            differ = (run_naive(*inputs)[0] != run_ours(*inputs)[0]).sum().item()
            print(
                f"| {kind} | {kept} | {slow:.0f} | {ours:.1f} | {slow / ours:.1f}x "
                f"| {naive_peak:.0f} | {ours_peak:.0f} | {differ} |"
            )


if __name__ == "__main__":
    main()
