"""Mask2Former R50 against transformers' with the same weights: time by part, and peak memory.

    OMP_NUM_THREADS=2 python benchmarks/mask2former.py [--size 512x512 800x1056] [--rounds 5]
        [--only inference training memory] [--dtype fp32 bf16] [--device cpu] [--cpu-time]

133 classes, 100 queries, batch 1, random weights; the class head is biased so that about 30 queries
are kept, the same on both sides. Both sides run in turn in one process, so that a busy machine
slows both; printed are medians. With --cpu-time it is the processor time of all threads, for a busy
machine (set OMP_WAIT_POLICY=passive, or waiting counts as work). Memory is the peak above the
loaded model, each side in a process of its own. Inference goes from the uint8 image to the panoptic
map, each side with its own post-processing (the peer's takes a short cut: it resizes masks to
384 x 384 and their probabilities to the output; the published steps on the peer's logits are timed
apart, and their map is compared with ours). The training step is forward, losses, backward and
AdamW, on 15 segments, with fixed batch norms on both sides.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from panoptic_ext import add_panoptic_ext_config
from panoptic_ext.model_zoo.transformers_weights import load_from_transformers
from tests.model_zoo.random_peer import randomise
from tests.postprocessing import naive_mask_inference as naive

ROOT = Path(__file__).resolve().parents[1]
CLASSES, THINGS, KEPT, SEGMENTS = 133, 80, 30, 15
NAME = "benchmark_mask2former"
STUFF = set(range(THINGS, CLASSES))
THRESHOLDS = {"object_mask_threshold": 0.8, "overlap_threshold": 0.8}
# Ratios of spec/performance.md, by (work, dtype, size); bf16 counts where the CPU has AMX.
TARGETS = {
    ("inference", "fp32", (512, 512)): 2.2,
    ("inference", "fp32", (800, 1056)): 2.1,
    ("inference", "bf16", (512, 512)): 3.2,
    ("training", "fp32", (512, 512)): 1.6,
}
PEER_PARTS = {
    "backbone": "model.pixel_level_module.encoder",
    "pixel decoder": "model.pixel_level_module.decoder",
    "decoder": "model.transformer_module",
    "criterion": "criterion",
}
OUR_PARTS = {
    "backbone": "backbone",
    "pixel decoder": "sem_seg_head.pixel_decoder",
    "decoder": "sem_seg_head.predictor",
    "criterion": "criterion",
}

Size = tuple[int, int]
Clock = Callable[[], float]


class Stopwatch:
    """Milliseconds of a call and of the modules that run in it."""

    def __init__(self, model: nn.Module, parts: dict[str, str], clock: Clock) -> None:
        self.now = clock
        self.times: dict[str, list[float]] = defaultdict(list)
        self._starts: dict[str, float] = {}
        for part, name in parts.items():
            module = model.get_submodule(name)
            module.register_forward_pre_hook(lambda *_, part=part: self.start(part))
            module.register_forward_hook(lambda *_, part=part: self.stop(part))

    def start(self, part: str) -> None:
        self._starts[part] = self.now()

    def stop(self, part: str) -> None:
        self.times[part].append(1000 * (self.now() - self._starts[part]))

    def medians(self) -> dict[str, float]:
        return {part: statistics.median(times) for part, times in self.times.items()}


def clock_of(device: str, cpu_time: bool) -> Clock:
    if device == "cuda":
        return lambda: torch.cuda.synchronize() or time.perf_counter()
    return time.process_time if cpu_time else time.perf_counter


def make_image(size: Size) -> Tensor:
    """(3, H, W) uint8: smooth blobs with a little noise."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, size[0] // 32, size[1] // 32, generator=generator) * 255
    image = nn.functional.interpolate(coarse, size, mode="bicubic")[0]
    return (image + 8 * torch.randn(3, *size, generator=generator)).clamp(0, 255).to(torch.uint8)


def make_truth(size: Size) -> tuple[Tensor, Tensor]:
    """(H, W) int32 ids 1 to 15 of which each owns a cell of a grid, and their classes."""
    rows = torch.arange(size[0]) * 3 // size[0]
    columns = torch.arange(size[1]) * (SEGMENTS // 3) // size[1]
    ids = rows[:, None] * (SEGMENTS // 3) + columns + 1
    classes = torch.randint(0, CLASSES, (SEGMENTS,), generator=torch.Generator().manual_seed(2))
    return ids.to(torch.int32), classes


def make_peer(size: Size) -> nn.Module:
    """Their model with random weights; fixed batch norms, as in ours."""
    torch.manual_seed(0)
    stages = [f"stage{i}" for i in range(1, 5)]
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.ResNetConfig(out_features=stages), num_labels=CLASSES
    )
    peer = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    randomise(peer)
    for module in peer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    bias_class_head(peer, size)
    return peer


@torch.no_grad()
def bias_class_head(peer: nn.Module, size: Size) -> None:
    """Sharp classes, and "no object" as likely as makes KEPT queries something else."""
    peer.class_predictor.weight.normal_(0, 1)
    peer.class_predictor.bias.zero_()
    pixels = (make_image(size).float() - 110) / 57
    logits = peer(pixel_values=pixels[None]).class_queries_logits[0]
    objects, nothing = logits[:, :-1], logits[:, -1]
    sure = objects.softmax(-1).amax(-1) > 0.9
    margin = torch.where(sure, objects.amax(-1) - nothing, -torch.inf)
    peer.class_predictor.bias[-1] = margin.topk(KEPT + 1).values[-2:].mean() - 1.5


def make_ours(peer: nn.Module) -> nn.Module:
    MetadataCatalog.get(NAME).isthing = tuple(i < THINGS for i in range(CLASSES))
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/common/mask2former/Base-Mask2Former.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = CLASSES
    cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON = cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = False
    cfg.DATASETS.TRAIN = (NAME,)
    ours = build_model(cfg).eval()
    load_from_transformers(ours, peer)
    return ours


class Peer:
    """Calls of transformers' model."""

    def __init__(
        self, model: nn.Module, reference: nn.Module, size: Size, device: str, clock: Clock
    ) -> None:
        self.model, self.size = model.to(device), size
        self.image = make_image(size).to(device)
        self.mean, self.std = reference.pixel_mean.to(device), reference.pixel_std.to(device)
        self.processor = transformers.Mask2FormerImageProcessor()
        self.watch = Stopwatch(model, PEER_PARTS, clock)
        ids, classes = make_truth(size)
        masks = ids == torch.arange(1, SEGMENTS + 1)[:, None, None]
        self.truth = {
            "mask_labels": [masks.float().to(device)],
            "class_labels": [classes.to(device)],
        }
        self.optimizer = make_optimizer(model)

    def pixels(self) -> Tensor:
        return ((self.image - self.mean) / self.std)[None]

    def infer(self) -> Any:
        outputs = self.model(pixel_values=self.pixels())
        self.watch.start("post-processing")
        outputs.class_queries_logits = outputs.class_queries_logits.float()
        outputs.masks_queries_logits = outputs.masks_queries_logits.float()
        result = self.processor.post_process_panoptic_segmentation(
            outputs, threshold=0.8, label_ids_to_fuse=STUFF, target_sizes=[self.size]
        )
        self.watch.stop("post-processing")
        return result

    def loss(self) -> Tensor:
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self.model(pixel_values=self.pixels(), **self.truth).loss


class Ours:
    """Calls of our model."""

    def __init__(self, model: nn.Module, size: Size, device: str, clock: Clock) -> None:
        self.model = model.to(device)
        self.watch = Stopwatch(model, OUR_PARTS, clock)
        ids, classes = make_truth(size)
        segments = Instances(size)
        segments.gt_classes, segments.gt_isthing = classes, classes < THINGS
        segments.gt_iscrowd = torch.zeros(SEGMENTS, dtype=torch.bool)
        self.inputs = [{"image": make_image(size), "panoptic_ids": ids, "segments": segments}]
        self.optimizer = make_optimizer(model)
        postprocess = model.postprocess_one

        def timed(*args: Any) -> Any:
            self.watch.start("post-processing")
            result = postprocess(*args)
            self.watch.stop("post-processing")
            return result

        model.postprocess_one = timed

    def infer(self) -> Any:
        return self.model(self.inputs)

    def loss(self) -> Tensor:
        self.model.train()
        return torch.stack(list(self.model(self.inputs).values())).sum()


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, lr=1e-6, foreach=True)


def run_inference(side: Peer | Ours, autocast: Callable[[], Any]) -> Any:
    side.model.eval()
    side.watch.start("total")
    with torch.inference_mode(), autocast():
        result = side.infer()
    side.watch.stop("total")
    return result


def run_training(side: Peer | Ours, autocast: Callable[[], Any]) -> None:
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


def sides(size: Size, device: str, clock: Clock) -> tuple[Peer, Ours]:
    peer = make_peer(size)
    ours = make_ours(peer)
    return Peer(peer, ours, size, device, clock), Ours(ours, size, device, clock)


def autocast_of(dtype: str, device: str) -> Callable[[], Any]:
    return lambda: torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16")


def time_work(work: str, size: Size, dtype: str, options: argparse.Namespace) -> None:
    """Print the rows of one table for one kind of work."""
    both = sides(size, options.device, clock_of(options.device, options.cpu_time))
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


def print_agreement(peer: Peer, ours: Ours, size: Size, autocast: Callable[[], Any]) -> None:
    """Say how far apart the outputs are, and time the published steps on the peer's logits."""
    peer.model.eval()
    ours.model.eval()
    with torch.inference_mode(), autocast():
        expected = peer.model(pixel_values=peer.pixels())
        features = ours.model.backbone(ours.model.preprocess_image(ours.inputs).tensor)
        found = ours.model.sem_seg_head(features, aux=False)
        panoptic, segments = ours.infer()[0]["panoptic_seg"]
    logits, masks = expected.class_queries_logits.float(), expected.masks_queries_logits.float()
    start = peer.watch.now()
    resized = naive.resize(masks[0].cpu(), size, size, size)
    wanted, _ = naive.panoptic(logits[0].cpu(), resized, set(range(THINGS)), *THRESHOLDS.values())
    naive_ms = 1000 * (peer.watch.now() - start)
    scores, labels = logits[0].softmax(-1).max(-1)
    kept = int(((labels < CLASSES) & (scores > THRESHOLDS["object_mask_threshold"])).sum())
    gaps = [
        ((a.float() - b).abs().max() / b.abs().max()).item()
        for a, b in ((found["pred_logits"], logits), (found["pred_masks"], masks))
    ]
    print(
        f"\n{kept} of {len(scores)} queries kept, {len(segments)} segments; largest difference "
        f"relative to the largest value: classes {gaps[0]:.1e}, masks {gaps[1]:.1e}; "
        f"{int((panoptic.cpu() != wanted).sum())} of {wanted.numel()} pixels of the panoptic map "
        f"differ; published steps on the peer's logits {naive_ms:.0f} ms\n"
    )


def resident(field: str) -> float:
    """VmRSS or VmHWM of this process, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return float("nan")


def measure_memory(which: str, work: str, size: Size, dtype: str, device: str) -> float:
    """MiB by which one call raises the peak above the loaded model; training steps after one."""
    peer, ours = sides(size, device, time.perf_counter)
    side = peer if which == "peer" else ours
    del peer, ours
    autocast = autocast_of(dtype, device)
    if work == "training":
        RUNS[work](side, autocast)  # gradients and the optimizer's state belong to the model
        side.optimizer.zero_grad(set_to_none=False)
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        RUNS[work](side, autocast)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # or freed memory would hide new use
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    RUNS[work](side, autocast)
    return resident("VmHWM") - before


def print_memory(work: str, size: Size, options: argparse.Namespace) -> None:
    """One row, each side measured in a process of its own."""
    peaks = []
    for which in ("peer", "ours"):
        given = [which, work, f"{size[0]}x{size[1]}", "fp32", options.device, options.threads]
        command = [sys.executable, __file__, "--measure", json.dumps(given)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout.split()[-1]))
    print(
        f"| {work} | {size[0]} x {size[1]} | {peaks[0]:.0f} | {peaks[1]:.0f} "
        f"| {peaks[0] / peaks[1]:.1f}x |",
        flush=True,
    )


def parse_size(text: str) -> Size:
    height, width = text.split("x")
    return int(height), int(width)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", nargs="+", type=parse_size, default=[(512, 512), (800, 1056)])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", 2)))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--cpu-time", action="store_true", help="processor time of all threads")
    works = ("inference", "training", "memory")
    parser.add_argument("--only", nargs="+", choices=works, default=works)
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Print Markdown tables."""
    logging.disable(logging.WARNING)
    options = parse_options()
    if options.measure:
        which, work, size, dtype, device, threads = options.measure
        torch.set_num_threads(threads)
        print(measure_memory(which, work, parse_size(size), dtype, device))
        return
    torch.set_num_threads(options.threads)
    print(
        f"{platform.machine()}, {options.device}, {options.threads} threads"
        f"{', processor time' if options.cpu_time else ''}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}; load {os.getloadavg()[0]}"
    )
    for size in options.size:
        for work in [w for w in RUNS if w in options.only]:
            for dtype in options.dtype:
                print("\n| work | size | dtype | part | peer ms | ours ms | ratio | target |")
                print("|---|---|---|---|---:|---:|---:|---:|")
                time_work(work, size, dtype, options)
    if "memory" in options.only:
        print("\n| work, fp32 | size | peer +MiB | ours +MiB | ratio |\n|---|---|---:|---:|---:|")
        for size in options.size:
            for work in RUNS:
                print_memory(work, size, options)
    print(f"\nload at the end {os.getloadavg()[0]}")


if __name__ == "__main__":
    main()
