"""Mask2Former R50 against a peer with the same weights: time by part, and peak memory.

    OMP_NUM_THREADS=2 python benchmarks/mask2former.py [--size 512x512 800x1056] [--rounds 5]
        [--only inference training memory] [--dtype fp32 bf16] [--batch 1] [--device cpu]
        [--cpu-time] [--published FOLDER] [--outputs all]

The peer is transformers' model; with --published it is that of a checkout of the published code,
whose attention then runs in pure PyTorch. The models have 133 classes, 100 queries and random
weights. The class head is biased so that about 30 queries are kept, the same on both sides. fp16
and bf16 are autocast; fp16 needs CUDA. Both sides take turns in one process, so that other work on
the machine slows both. Medians are printed. With --cpu-time they are of the processor time of all
threads, for a busy machine (set OMP_WAIT_POLICY=passive, or waiting counts as work). Memory is the
peak above the loaded model, each side in a separate process.

Inference runs from the uint8 image to the panoptic map, each side with its own post-processing. The
overlap threshold is 0.02, because random masks overlap much. With --outputs all, which needs
--published, instances and semantic scores are computed too. transformers takes a short cut: it
resizes masks to 384 x 384 and their probabilities to the output. The published steps on the peer's
logits are therefore timed separately, and their map is compared with ours. The training step is
forward, losses, backward and AdamW, on 15 segments, with fixed batch norms on both sides.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from mask2former_sides import CLASSES, OVERLAP, THINGS, Ours, Size, clock_of, make_sides
from peak_memory import peak_growth

from tests.postprocessing import naive_mask_inference as naive

THRESHOLDS = {"object_mask_threshold": 0.8, "overlap_threshold": OVERLAP}
# Ratios of spec/performance.md, by (work, dtype, size); bf16 counts where the CPU has AMX.
TARGETS = {
    ("inference", "fp32", (512, 512)): 2.2,
    ("inference", "fp32", (800, 1056)): 2.1,
    ("inference", "bf16", (512, 512)): 3.2,
    ("training", "fp32", (512, 512)): 1.6,
}


def run_inference(side: Any, autocast: Callable[[], Any]) -> Any:
    side.model.eval()
    side.watch.start("total")
    with torch.inference_mode(), autocast():
        result = side.infer()
    side.watch.stop("total")
    return result


def run_training(side: Any, autocast: Callable[[], Any]) -> None:
    watch = side.watch
    watch.start("total")
    side.optimizer.zero_grad()
    with autocast():
        loss = side.loss()
    watch.start("backward")
    loss.backward()
    watch.stop("backward")
    watch.start("AdamW")
    side.optimizer.step()
    watch.stop("AdamW")
    watch.stop("total")


RUNS = {"inference": run_inference, "training": run_training}


DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_of(dtype: str, device: str) -> Callable[[], Any]:
    kind = DTYPES[dtype]
    return lambda: torch.autocast(device, kind, enabled=kind is not None)


def time_work(work: str, size: Size, dtype: str, options: argparse.Namespace) -> None:
    """Print the rows of one table for one kind of work."""
    clock = clock_of(options.device, options.cpu_time)
    choice = {"published": options.published, "outputs": options.outputs}
    both = make_sides(size, options.batch, options.device, clock, **choice)
    run, autocast = RUNS[work], autocast_of(dtype, options.device)
    if work == "inference":
        print_agreement(*both, size, autocast)
    for number in range(options.rounds + 1):
        for side in both:
            run(side, autocast)
            if not number:
                side.watch.times.clear()
    theirs, ours = (side.watch.medians() for side in both)
    target = TARGETS.get((work, dtype, size))
    for part in ours:
        goal = f"{target}x" if part == "total" and target else ""
        ratio = theirs[part] / ours[part]
        print(
            f"| {work} | {size[0]} x {size[1]} | {dtype} | {part} | {theirs[part]:.1f} "
            f"| {ours[part]:.1f} | {ratio:.2f}x | {goal} |",
            flush=True,
        )
    rates = (f"{1000 * options.batch / times['total']:.2f}" for times in (theirs, ours))
    print(f"\nimages a second at batch {options.batch}: {', '.join(rates)}")


def print_agreement(peer: Any, ours: Ours, size: Size, autocast: Callable[[], Any]) -> None:
    """Print how much the outputs differ, and time the published steps on the peer's logits."""
    peer.model.eval()
    ours.model.eval()
    with torch.inference_mode(), autocast():
        logits, masks = (output.float() for output in peer.outputs())
        features = ours.model.backbone(ours.model.preprocess_image(ours.inputs).tensor)
        our_outputs = ours.model.sem_seg_head(features, aux=False)
        panoptic, segments = ours.infer()[0]["panoptic_seg"]
    start = peer.watch.now()
    resized = naive.resize(masks[0].cpu(), size, size, size)
    wanted, _ = naive.panoptic(logits[0].cpu(), resized, set(range(THINGS)), *THRESHOLDS.values())
    naive_ms = 1000 * (peer.watch.now() - start)
    scores, labels = logits[0].softmax(-1).max(-1)
    kept = int(((labels < CLASSES) & (scores > THRESHOLDS["object_mask_threshold"])).sum())
    gaps = [
        ((a.float() - b).abs().max() / b.abs().max()).item()
        for a, b in ((our_outputs.pred_logits, logits), (our_outputs.dense_masks(), masks))
    ]
    print(
        f"\n{kept} of {len(scores)} queries kept, {len(segments)} segments; largest difference "
        f"relative to the largest value: classes {gaps[0]:.1e}, masks {gaps[1]:.1e}; "
        f"{int((panoptic.cpu() != wanted).sum())} of {wanted.numel()} pixels of the panoptic map "
        f"differ; published steps on the peer's logits {naive_ms:.0f} ms\n"
    )


def measure_memory(which: str, work: str, size: Size, options: argparse.Namespace) -> float:
    """MiB by which one call raises the peak above the loaded model; a second step of training."""
    dtype, device = options.dtype[0], options.device
    choice = {"published": options.published, "outputs": options.outputs}
    peer, ours = make_sides(size, options.batch, device, time.perf_counter, **choice)
    side = peer if which == "peer" else ours
    del peer, ours
    autocast = autocast_of(dtype, device)
    if work == "training":
        # The first step makes the optimizer's state, which counts as part of the loaded model.
        RUNS[work](side, autocast)
        side.optimizer.zero_grad()
    return peak_growth(lambda: RUNS[work](side, autocast), device)


def print_memory(work: str, size: Size, dtype: str, options: argparse.Namespace) -> None:
    """One row, each side measured in a process of its own."""
    peaks = []
    for which in ("peer", "ours"):
        command = [sys.executable, __file__, "--measure", which, work, "--dtype", dtype]
        command += ["--size", f"{size[0]}x{size[1]}", "--device", options.device]
        command += ["--batch", str(options.batch), "--threads", str(options.threads)]
        command += ["--outputs", options.outputs]
        if options.published is not None:
            command += ["--published", str(options.published)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout.split()[-1]))
    print(
        f"| {work} | {size[0]} x {size[1]} | {dtype} | {peaks[0]:.0f} | {peaks[1]:.0f} "
        f"| {peaks[0] / peaks[1]:.1f}x |",
        flush=True,
    )


def name_of(device: str) -> str:
    """The card's name, or the processor's kind."""
    return torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU"


def name_of_peer(published: Path | None) -> str:
    return "the published code" if published else f"transformers {transformers.__version__}"


def parse_size(text: str) -> Size:
    height, width = text.split("x")
    return int(height), int(width)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", nargs="+", type=parse_size, default=[(512, 512), (800, 1056)])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", 2)))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", nargs="+", choices=tuple(DTYPES), default=["fp32", "bf16"])
    parser.add_argument("--batch", type=int, default=1, help="images a call")
    parser.add_argument("--cpu-time", action="store_true", help="processor time of all threads")
    works = ("inference", "training", "memory")
    parser.add_argument("--only", nargs="+", choices=works, default=works)
    parser.add_argument("--published", type=Path, help="checkout of the published Mask2Former")
    parser.add_argument("--outputs", choices=("panoptic", "all"), default="panoptic")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.batch < 1:
        parser.error(f"--batch is {options.batch}, expected 1 or more")
    if options.outputs == "all" and options.published is None:
        parser.error("--outputs all needs --published FOLDER: transformers gives one output a call")
    if options.device == "cpu" and "fp16" in options.dtype:
        parser.error("--dtype fp16 needs --device cuda; a CPU has bf16")
    return options


def main() -> None:
    """Print Markdown tables."""
    logging.disable(logging.WARNING)
    options = parse_options()
    if options.measure:
        torch.set_num_threads(options.threads)
        print(measure_memory(*options.measure, options.size[0], options))
        return
    torch.set_num_threads(options.threads)
    print(
        f"{name_of(options.device)}, {options.threads} threads"
        f"{', processor time' if options.cpu_time else ''}, torch "
        f"{torch.__version__}, peer {name_of_peer(options.published)}; load {os.getloadavg()[0]}"
    )
    for size in options.size:
        for work in [w for w in RUNS if w in options.only]:
            for dtype in options.dtype:
                print("\n| work | size | dtype | part | peer ms | ours ms | ratio | target |")
                print("|---|---|---|---|---:|---:|---:|---:|")
                time_work(work, size, dtype, options)
    if "memory" in options.only:
        print("\n| work | size | dtype | peer +MiB | ours +MiB | ratio |")
        print("|---|---|---|---:|---:|---:|")
        for size in options.size:
            for work in RUNS:
                for dtype in options.dtype:
                    print_memory(work, size, dtype, options)
    print(f"\nload at the end {os.getloadavg()[0]}")


if __name__ == "__main__":
    main()
