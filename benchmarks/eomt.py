"""EoMT against transformers' with the same weights: time, and peak memory.

    OMP_NUM_THREADS=2 python benchmarks/eomt.py [--model small base] [--encoder dinov2]
        [--side 640] [--rounds 5] [--only inference training memory profile] [--dtype fp32]
        [--batch 1] [--device cpu] [--compile] [--mask2former] [--cpu-time]

The models have 133 classes, 200 queries and random weights. The class head is biased so that about
30 queries are kept, the same on both sides. fp16 and bf16 are autocast; fp16 needs CUDA. The sides
take turns in one process, so that other work on the machine slows both. Medians are printed.
With --cpu-time they are of the processor time of all threads, for a busy machine (set
OMP_WAIT_POLICY=passive, or waiting counts as work). Memory is the peak above the loaded model, each
side in a separate process.

Inference runs from the uint8 image, a square, to the panoptic map, each side with its own
post-processing; the overlap threshold is 0.02, because random masks overlap much. The training step
is forward with every attention mask on, losses on 15 segments, backward and AdamW.
With --mask2former our Mask2Former R50 takes turns, too. With --compile ours compiles its blocks
(MODEL.VIT.COMPILE) and transformers' model is compiled whole. "profile" lists the operations that
take most of the time of each side.

With --rounds 0 only the agreement of the outputs is printed. For the frames a second of L on a GPU:
    python benchmarks/eomt.py --model large --dtype fp16 --compile --only inference --device cuda
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from eomt_sides import ENCODERS, MODELS, Ours, Peer, make_mask2former, make_ours, make_peer
from mask2former import DTYPES, RUNS, autocast_of, name_of
from mask2former_sides import clock_of
from peak_memory import peak_growth

WORKS = ("inference", "training")
# Of the issue, on a CPU in fp32.
TARGETS = {"inference": 1.2, "training": 1.3}


def make_sides(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """The models by name: transformers first, then ours, then perhaps Mask2Former."""
    clock = clock_of(options.device, options.cpu_time)
    batches = options.batch, options.device, clock
    size = options.side, options.side
    peer = make_peer(model, options.encoder, options.side)
    ours = make_ours(peer, model, options.encoder, options.side, compiled=options.compile)
    sides: dict[str, Any] = {
        "transformers": Peer(peer, ours, options.side, *batches, compiled=options.compile),
        "ours": Ours(ours, size, *batches),
    }
    if options.mask2former:
        sides["Mask2Former R50"] = Ours(make_mask2former(options.side), size, *batches)
    return sides


def time_work(model: str, work: str, dtype: str, options: argparse.Namespace) -> None:
    """Print the rows of one table for one kind of work."""
    sides = make_sides(model, options)
    run, autocast = RUNS[work], autocast_of(dtype, options.device)
    if work == "inference":
        print_agreement(sides["transformers"], sides["ours"], autocast)
    if not options.rounds:
        return
    print(f"\n| {model} {work} {dtype} | " + " | ".join(f"{side} ms" for side in sides), end="")
    print(" | ratio | goal |\n|---" + "|---:" * (len(sides) + 2) + "|")
    for number in range(options.rounds + 1):
        for side in sides.values():
            run(side, autocast)
            if not number:
                side.watch.times.clear()
    medians = [side.watch.medians() for side in sides.values()]
    for part in medians[0]:
        values = " | ".join(f"{times[part]:.1f}" for times in medians)
        goal = ""
        if part == "total" and dtype == "fp32" and options.device == "cpu":
            goal = f"{TARGETS[work]}x"
        print(f"| {part} | {values} | {medians[0][part] / medians[1][part]:.2f}x | {goal} |")
    rates = (f"{1000 * options.batch / times['total']:.2f}" for times in medians)
    print(f"\nimages a second at batch {options.batch}: {', '.join(rates)}", flush=True)


def print_agreement(peer: Peer, ours: Ours, autocast: Callable[[], Any]) -> None:
    """Print how much the outputs of the two sides differ."""
    peer.model.eval()
    ours.model.eval()
    model = ours.model
    with torch.inference_mode(), autocast():
        logits, masks = (output.float() for output in peer.outputs())
        outputs = model.outputs(model.preprocess_image(ours.inputs).tensor)
        _, segments = ours.infer()[0]["panoptic_seg"]
    scores, labels = logits[0].softmax(-1).max(-1)
    kept = int(((labels < logits.shape[-1] - 1) & (scores > 0.8)).sum())
    gaps = [
        ((a.float() - b).abs().max() / b.abs().max()).item()
        for a, b in ((outputs.pred_logits, logits), (outputs.dense_masks(), masks))
    ]
    print(
        f"\n{kept} of {len(scores)} queries kept, {len(segments)} segments; largest difference "
        f"relative to the largest value: classes {gaps[0]:.1e}, masks {gaps[1]:.1e}"
    )


def print_profile(model: str, work: str, dtype: str, options: argparse.Namespace) -> None:
    """The operations of each side, by their own time, of one call after one to warm up."""
    run, autocast = RUNS[work], autocast_of(dtype, options.device)
    kind = torch.profiler.ProfilerActivity
    activities = [kind.CPU] + [kind.CUDA] * (options.device == "cuda")
    column = "self_device_time_total" if options.device == "cuda" else "self_cpu_time_total"
    for name, side in make_sides(model, options).items():
        run(side, autocast)
        with torch.profiler.profile(activities=activities) as profile:
            run(side, autocast)
        rows = sorted(profile.key_averages(), key=lambda row: -getattr(row, column))
        total = sum(getattr(row, column) for row in rows)
        print(f"\n| {name}: {model} {work} {dtype} | ms | share | calls |\n|---|---:|---:|---:|")
        for row in rows[:14]:
            spent = getattr(row, column)
            print(f"| {row.key} | {spent / 1000:.1f} | {spent / total:.1%} | {row.count} |")


def measure_memory(which: str, model: str, work: str, options: argparse.Namespace) -> float:
    """MiB by which one call raises the peak above the loaded model; a second step of training."""
    sides = make_sides(model, options)
    side = sides.pop(which)
    sides.clear()
    autocast = autocast_of(options.dtype[0], options.device)
    if work == "training":
        # The first step makes the optimizer's state, which counts as part of the loaded model.
        RUNS[work](side, autocast)
        side.optimizer.zero_grad()
    return peak_growth(lambda: RUNS[work](side, autocast), options.device)


def print_memory(model: str, work: str, dtype: str, options: argparse.Namespace) -> None:
    """One row, each side measured in a process of its own."""
    names = ["transformers", "ours"] + ["Mask2Former R50"] * options.mask2former
    peaks = []
    for which in names:
        command = [sys.executable, __file__, "--measure", which, model, work, "--dtype", dtype]
        command += ["--encoder", options.encoder, "--side", str(options.side)]
        command += ["--device", options.device, "--batch", str(options.batch)]
        command += ["--compile"] * options.compile + ["--mask2former"] * options.mask2former
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout.split()[-1]))
    print(f"\n| {model} {work} {dtype}, peak +MiB | " + " | ".join(names) + " | ratio |")
    print("|---" * (len(names) + 2) + "|")
    values = " | ".join(f"{peak:.0f}" for peak in peaks)
    print(f"| | {values} | {peaks[0] / peaks[1]:.1f}x |", flush=True)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", nargs="+", choices=tuple(MODELS), default=["small", "base"])
    parser.add_argument("--encoder", choices=tuple(ENCODERS), default="dinov2")
    parser.add_argument("--side", type=int, default=640, help="of the square image, pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", 2)))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", nargs="+", choices=tuple(DTYPES), default=["fp32"])
    parser.add_argument("--batch", type=int, default=1, help="images a call")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--mask2former", action="store_true", help="beside our Mask2Former R50")
    parser.add_argument("--cpu-time", action="store_true", help="processor time of all threads")
    kinds = (*WORKS, "memory", "profile")
    parser.add_argument("--only", nargs="+", choices=kinds, default=(*WORKS, "memory"))
    parser.add_argument("--work", nargs="+", choices=WORKS, default=WORKS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cpu" and "fp16" in options.dtype:
        parser.error("--dtype fp16 needs --device cuda; a CPU has bf16")
    return options


def main() -> None:
    """Print Markdown tables."""
    logging.disable(logging.WARNING)
    options = parse_options()
    torch.set_num_threads(options.threads)
    if options.measure:
        print(measure_memory(*options.measure, options))
        return
    print(
        f"{name_of(options.device)}, {options.threads} threads"
        f"{', processor time' if options.cpu_time else ''}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, {options.side} x {options.side}; load "
        f"{os.getloadavg()[0]}"
    )
    for model in options.model:
        for dtype in options.dtype:
            for work in WORKS:
                if work in options.only:
                    time_work(model, work, dtype, options)
                if "memory" in options.only:
                    print_memory(model, work, dtype, options)
                if "profile" in options.only and work in options.work:
                    print_profile(model, work, dtype, options)
    print(f"\nload at the end {os.getloadavg()[0]}, {time.strftime('%Y-%m-%d')}")


if __name__ == "__main__":
    main()
