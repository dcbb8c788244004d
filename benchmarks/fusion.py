"""Fusions at 1024 x 2048, 19 classes: time and memory against dense stacks and Detectron2.

    OMP_NUM_THREADS=2 python benchmarks/fusion.py [--rounds 7] [--device cpu] [--cpu-time]
        [--only hadamard combine growth memory]

hadamard: ours against the paper's steps on N x H x W stacks (only the channel of the predicted
    class), from upsampled semantic logits, 28 x 28 mask logits and boxes. The dense side runs once
    with `argmax` over the stack and once with `max`, which is faster on a CPU. The upsampling of
    the semantic logits from 256 x 512, which both sides need, is timed separately.
combine: Detectron2's `combine_semantic_and_instance_outputs` against ours from the same pasted
    masks and labels; and the whole route from logits (argmax, pasting, combining).
growth: ours for a growing number of instances.
memory: the peak above what was held before the call, each in a separate process.

All sides take turns in one process, so that other work on the machine slows all of them. Medians
are printed; with --cpu-time they are of the processor time of one thread. The results of the sides
are compared as well.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.structures import Instances
from peak_memory import peak_growth
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from panoptic_ext.fusion import (
    Detections,
    FusionRule,
    PanopticMap,
    hadamard_fusion,
    heuristic_fusion,
    heuristic_fusion_on_labels,
    upsnet_fusion,
)

SIZE, COARSE, CLASSES, CELLS = (1024, 2048), (256, 512), 19, 28
THINGS = tuple(range(11, 19))  # as in Cityscapes
OPTIONS = {"score_threshold": 0.5, "overlap_threshold": 0.5, "stuff_area_threshold": 2048}
RULE = FusionRule(THINGS, CLASSES, **OPTIONS)
TARGETS = {("hadamard", 20): 15, ("hadamard", 60): 22, ("combine", 20): 11, ("combine", 100): 20}

Call = Callable[[], Any]


class Scene:
    """Smooth semantic logits and round instances, 24 to 400 pixels high, all of score >= 0.5."""

    def __init__(self, count: int, device: str) -> None:
        g = torch.Generator().manual_seed(0)
        blobs = 4 * torch.randn(1, CLASSES, 32, 64, generator=g)
        self.coarse = F.interpolate(blobs, COARSE, mode="bicubic").to(device)
        self.sem_seg = self.upsample()
        height = torch.exp(torch.empty(count).uniform_(3.18, 5.99, generator=g))
        width = height * torch.exp(torch.empty(count).uniform_(-0.9, 0.7, generator=g))
        centre = torch.rand(count, 2, generator=g) * torch.tensor(SIZE[::-1])
        half = torch.stack((width, height), 1) / 2
        boxes = torch.cat((centre - half, centre + half), 1)
        limit = torch.tensor(SIZE[::-1] * 2)
        line = torch.linspace(-1, 1, CELLS)
        radius = (line[:, None] ** 2 + line**2).sqrt()
        masks = 6 * (0.9 - radius) + torch.randn(count, CELLS, CELLS, generator=g)
        self.instances = {
            "boxes": boxes.clamp(min=0).minimum(limit).to(device),
            "scores": (0.5 + 0.5 * torch.rand(count, generator=g)).to(device),
            "classes": torch.randint(11, 19, (count,), generator=g).to(device),
            "mask_logits": masks.to(device),
        }

    def upsample(self) -> Tensor:
        return F.interpolate(self.coarse, SIZE, mode="bilinear", align_corners=False)[0]

    def ours(self, fusion: Callable[..., PanopticMap], **options: float) -> PanopticMap:
        return fusion(self.sem_seg, Detections(**self.instances), RULE, **options)

    def covered(self) -> float:
        """Areas of all boxes, relative to the image."""
        boxes = self.instances["boxes"]
        return ((boxes[:, 2:] - boxes[:, :2]).prod(1).sum() / (SIZE[0] * SIZE[1])).item()


def dense_pasted(scene: Scene) -> tuple[list[int], Tensor, Tensor]:
    """Instances by score, their mask logits (N, H, W), zeros outside, and where the boxes are."""
    scores = scene.instances["scores"]
    order = scores.argsort(descending=True)
    order = order[scores[order] >= OPTIONS["score_threshold"]]
    logits = scene.sem_seg.new_zeros(len(order), *SIZE)
    inside = torch.zeros_like(logits, dtype=torch.bool)
    for place, i in enumerate(order.tolist()):
        x1, y1, x2, y2 = scene.instances["boxes"][i].tolist()
        rows = torch.arange(max(0, -int(-(y1 - 0.5) // 1)), min(SIZE[0], -int(-(y2 - 0.5) // 1)))
        columns = torch.arange(max(0, -int(-(x1 - 0.5) // 1)), min(SIZE[1], -int(-(x2 - 0.5) // 1)))
        if not len(rows) or not len(columns):
            continue
        y = (rows.to(logits.device) + 0.5 - y1) / (y2 - y1) * 2 - 1
        x = (columns.to(logits.device) + 0.5 - x1) / (x2 - x1) * 2 - 1
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None]
        mask = scene.instances["mask_logits"][i][None, None]
        window = place, slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        logits[window] = F.grid_sample(mask, grid, padding_mode="border", align_corners=False)[0, 0]
        inside[window] = True
    return order.tolist(), logits, inside


def dense_kept(masks: Tensor) -> list[int]:
    """Indices of the instances that overlap the union of better kept ones little enough."""
    union = torch.zeros_like(masks[0])
    kept = []
    for place, mask in enumerate(masks):
        area = mask.sum().item()
        common = (mask & union).sum().item()
        if area and common / area <= OPTIONS["overlap_threshold"]:
            union |= mask
            kept.append(place)
    return kept


def dense_hadamard(scene: Scene, largest: Callable[[Tensor], Tensor]) -> Tensor:
    """The paper's steps on whole-image stacks; (H, W) segment ids, as ours."""
    sem_seg = scene.sem_seg
    order, logits, inside = dense_pasted(scene)
    kept = dense_kept((logits > 0) & inside)
    mla, inside = logits[kept], inside[kept]
    del logits
    classes = scene.instances["classes"][torch.tensor(order)[kept].to(sem_seg.device)]
    mlb = sem_seg[classes] * inside
    fused = (mla.sigmoid() + mlb.sigmoid()) * (mla + mlb)
    del mla, mlb
    fused.masked_fill_(~inside, -torch.inf)
    stuff = [k for k in range(CLASSES) if k not in THINGS]
    winner = largest(torch.cat((sem_seg[stuff], fused)))
    del fused
    labels = largest(sem_seg)
    result = torch.zeros(SIZE, dtype=torch.int32, device=sem_seg.device)
    number = 0
    for place in range(len(kept)):
        mine = winner == len(stuff) + place
        if mine.any():
            number += 1
            result[mine] = number
    for k in stuff:
        mine = (labels == k) & (winner < len(stuff))
        if mine.sum() >= OPTIONS["stuff_area_threshold"]:
            number += 1
            result[mine] = number
    return result


def by_argmax(stack: Tensor) -> Tensor:
    return stack.argmax(dim=0)


def by_max(stack: Tensor) -> Tensor:
    return stack.max(dim=0).indices


def pasted_masks(scene: Scene) -> Tensor:
    probabilities = scene.instances["mask_logits"].sigmoid()
    return paste_masks_in_image(probabilities, scene.instances["boxes"], SIZE)


def detectron2_combine(scene: Scene, masks: Tensor, labels: Tensor) -> PanopticMap:
    """`labels` have 0 for things, as Detectron2's "separated" metadata."""
    instances = Instances(SIZE, pred_masks=masks)
    instances.scores, instances.pred_classes = (scene.instances[n] for n in ("scores", "classes"))
    return combine_semantic_and_instance_outputs(
        instances, labels, *(OPTIONS[n + "_threshold"] for n in ("overlap", "stuff_area", "score"))
    )


def without_things(labels: Tensor) -> Tensor:
    return torch.where(labels >= THINGS[0], 0, labels + 1)


def combine_sides(scene: Scene) -> dict[str, Call]:
    masks, labels = pasted_masks(scene), by_max(scene.sem_seg)
    separated = without_things(labels)
    scores, classes = (scene.instances[n].tolist() for n in ("scores", "classes"))
    boxes = scene.instances["boxes"].tolist()

    def window(i: int) -> tuple[Tensor, int, int]:
        """The part of a pasted mask that its box touches."""
        left, top = (max(0, int(x) - 1) for x in boxes[i][:2])
        right, bottom = (int(x) + 2 for x in boxes[i][2:])
        return masks[i, top:bottom, left:right], top, left

    def ours() -> Tensor:
        return heuristic_fusion_on_labels(
            labels, RULE, scores=scores, classes=classes, mask_of=window
        )[0]

    return {"dense": lambda: detectron2_combine(scene, masks, separated)[0], "ours": ours}


def route_sides(scene: Scene) -> dict[str, Call]:
    def theirs() -> Tensor:
        labels = without_things(scene.sem_seg.argmax(dim=0))
        return detectron2_combine(scene, pasted_masks(scene), labels)[0]

    return {"dense": theirs, "ours": lambda: scene.ours(heuristic_fusion)[0]}


def hadamard_sides(scene: Scene) -> dict[str, Call]:
    return {
        "dense": lambda: dense_hadamard(scene, by_argmax),
        "dense_max": lambda: dense_hadamard(scene, by_max),
        "ours": lambda: scene.ours(hadamard_fusion)[0],
        "upsample": scene.upsample,
    }


def clock_of(device: str, cpu_time: bool) -> Callable[[], float]:
    if device == "cuda":
        return lambda: torch.cuda.synchronize() or time.perf_counter()
    return time.process_time if cpu_time else time.perf_counter


def medians(sides: dict[str, Call], options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of each side; they take turns, after one call to warm up."""
    clock = clock_of(options.device, options.cpu_time)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(options.rounds + 1):
        for name, call in sides.items():
            start = clock()
            result = call()
            if number:
                times[name].append(1000 * (clock() - start))
            del result
    return {name: statistics.median(values) for name, values in times.items()}


def differing(sides: dict[str, Call]) -> int:
    return int((sides["dense"]() != sides["ours"]()).sum())


def print_hadamard(options: argparse.Namespace) -> None:
    print(
        "\n| hadamard, instances | dense, argmax ms | dense, max ms | ours ms | ratio "
        "| ratio to max | upsampling ms | ratio with it on both sides | target "
        "| differing pixels |\n"
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    )
    for count in (20, 60, 100):
        sides = hadamard_sides(Scene(count, options.device))
        ms, pixels = medians(sides, options), differing(sides)
        both = (ms["dense"] + ms["upsample"]) / (ms["ours"] + ms["upsample"])
        target = TARGETS.get(("hadamard", count))
        print(
            f"| {count} | {ms['dense']:.0f} | {ms['dense_max']:.0f} | {ms['ours']:.1f} "
            f"| {ms['dense'] / ms['ours']:.1f}x | {ms['dense_max'] / ms['ours']:.1f}x "
            f"| {ms['upsample']:.1f} | {both:.1f}x | {f'{target}x' if target else ''} | {pixels} |",
            flush=True,
        )


def print_combine(options: argparse.Namespace) -> None:
    print(
        "\n| heuristic | instances | Detectron2 ms | ours ms | ratio | target "
        "| differing pixels |\n"
        "|---|---:|---:|---:|---:|---:|---:|"
    )
    works = {"combine": combine_sides, "argmax, paste, combine": route_sides}
    for work, sides_of in works.items():
        for count in (20, 60, 100):
            sides = sides_of(Scene(count, options.device))
            ms, pixels = medians(sides, options), differing(sides)
            target = TARGETS.get((work, count))
            print(
                f"| {work} | {count} | {ms['dense']:.1f} | {ms['ours']:.1f} "
                f"| {ms['dense'] / ms['ours']:.1f}x | {f'{target}x' if target else ''} "
                f"| {pixels} |",
                flush=True,
            )


def print_growth(options: argparse.Namespace) -> None:
    print(
        "\n| instances | boxes / image | hadamard ms | heuristic ms | upsnet ms |\n"
        "|---:|---:|---:|---:|---:|"
    )
    for count in (0, 20, 60, 100, 200, 400):
        scene = Scene(count, options.device)
        ms = medians(ours_sides(scene), options)
        print(
            f"| {count} | {scene.covered():.2f} | {ms['hadamard']:.1f} | {ms['heuristic']:.1f} "
            f"| {ms['upsnet']:.1f} |",
            flush=True,
        )


def ours_sides(scene: Scene) -> dict[str, Call]:
    return {
        "hadamard": lambda: scene.ours(hadamard_fusion),
        "heuristic": lambda: scene.ours(heuristic_fusion),
        "upsnet": lambda: scene.ours(upsnet_fusion, nms_threshold=0.5),
    }


def measure_memory(side: str, count: int, device: str) -> float:
    """MiB by which one call raises the peak above its inputs."""
    scene = Scene(count, device)
    sides = {
        **ours_sides(scene),
        "dense hadamard": hadamard_sides(scene)["dense_max"],
        "Detectron2": route_sides(scene)["dense"],
    }
    if device != "cpu":
        sides[side]()  # the first call also allocates what CUDA libraries keep
    return peak_growth(sides[side], device)


def print_memory(options: argparse.Namespace) -> None:
    print("\n| +MiB | 20 instances | 100 | 400 |\n|---|---:|---:|---:|")
    for side in ("hadamard", "heuristic", "upsnet", "dense hadamard", "Detectron2"):
        cells = []
        for count in (20, 100, 400):
            if side == "dense hadamard" and count > 100:
                cells.append("")  # tens of GiB
                continue
            arguments = json.dumps([side, count, options.device, options.threads])
            command = [sys.executable, __file__, "--measure", arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            cells.append(f"{float(done.stdout.split()[-1]):.0f}")
        print(f"| {side} | {' | '.join(cells)} |", flush=True)


PRINTERS = {
    "hadamard": print_hadamard,
    "combine": print_combine,
    "growth": print_growth,
    "memory": print_memory,
}


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", 2)))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cpu-time", action="store_true", help="processor time; 1 thread")
    parser.add_argument("--only", nargs="+", choices=PRINTERS, default=list(PRINTERS))
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Print Markdown tables."""
    warnings.simplefilter("ignore")
    options = parse_options()
    if options.measure:
        side, count, device, threads = options.measure
        torch.set_num_threads(threads)
        print(measure_memory(side, count, device))
        return
    if options.cpu_time:
        options.threads = 1
    torch.set_num_threads(options.threads)
    print(
        f"{platform.machine()}, {options.device}, {options.threads} threads"
        f"{', processor time' if options.cpu_time else ''}, torch {torch.__version__}, "
        f"{SIZE[0]} x {SIZE[1]}, {CLASSES} classes; load {os.getloadavg()[0]}"
    )
    for name in options.only:
        PRINTERS[name](options)
    print(f"\nload at the end {os.getloadavg()[0]}")


if __name__ == "__main__":
    main()
