"""Whole inference of EfficientPS and Panoptic FPN against Detectron2's PanopticFPN, one backbone.

    OMP_NUM_THREADS=2 python benchmarks/panoptic_models.py [--size 512x1024] [--rounds 5]
        [--instances 60] [--device cpu] [--cpu-time]

The models have a ResNet-50, 19 classes of which 8 are things, and random weights; they run from the
uint8 image to the panoptic map, at batch 1. The three take turns in one process, so that other work
on the machine slows all of them; medians are printed. Scores of random weights mean nothing, so
thresholds are 0 and each model keeps the same number of detections, whose boxes are unchanged
anchors. "the rest" is the time outside the listed modules: normalization, resizing, pasting and
merging masks. Memory is the peak above the loaded model, each model in a separate process.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from mask2former import parse_size
from mask2former_sides import Stopwatch, clock_of, make_image
from peak_memory import peak_growth
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from panoptic_ext import add_panoptic_ext_config

ROOT = Path(__file__).resolve().parents[1]
NAME = "benchmark_panoptic_models"
CLASSES, THINGS = 19, 8
PARTS = {
    "backbone and pyramid": "backbone",
    "semantic head": "sem_seg_head",
    "RPN": "proposal_generator",
    "RoI heads": "roi_heads",
}
MODELS = {
    "Detectron2's PanopticFPN": ("panoptic_fpn/Base-PanopticFPN.yaml",),
    "Panoptic FPN": ("panoptic_fpn/Base-PanopticFPN.yaml",),
    "EfficientPS": ("efficientps/Base-EfficientPS.yaml", "efficientps/Base-R50.yaml"),
}


def make_model(name: str, instances: int) -> nn.Module:
    """The model with random weights, in eval mode, for a fixed number of detections."""
    MetadataCatalog.get(NAME).isthing = tuple(i >= CLASSES - THINGS for i in range(CLASSES))
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    for path in MODELS[name]:
        cfg.merge_from_file(str(ROOT / "configs/common" / path))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.DATASETS.TRAIN = (NAME,)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = THINGS
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = CLASSES
    for node in (cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.RPN, cfg.MODEL.TWO_WAY_FPN):
        if node.NORM == "SyncBN":
            node.NORM = "BN"
    if cfg.MODEL.ROI_MASK_HEAD.NORM == "SyncBN":
        cfg.MODEL.ROI_MASK_HEAD.NORM = "BN"
    if name.startswith("Detectron2"):
        cfg.MODEL.META_ARCHITECTURE = "PanopticFPN"
        cfg.MODEL.SEM_SEG_HEAD.NAME = "SemSegFPNHead"
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = CLASSES - THINGS + 1
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = 0.0
    cfg.MODEL.PANOPTIC_FUSION.SCORE_THRESHOLD = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = instances
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    # Boxes are unchanged anchors: those of random weights would fill the image and suppress each
    # other.
    with torch.no_grad():
        model.proposal_generator.rpn_head.anchor_deltas.weight.zero_()
        model.roi_heads.box_predictor.bbox_pred.weight.zero_()
    return model


def calibrated_backbone(options: argparse.Namespace) -> dict[str, Tensor]:
    """Weights of a ResNet-50 whose fixed batch norms fit its random weights and the image."""
    backbone = make_model("Detectron2's PanopticFPN", options.instances).backbone.bottom_up

    def fit(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        norm.running_mean.copy_(inputs[0].mean((0, 2, 3)))
        norm.running_var.copy_(inputs[0].var((0, 2, 3)) + 1e-3)

    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.register_forward_pre_hook(fit)
    with torch.no_grad():
        backbone((make_image(options.size)[None].float() - 110) / 57)
    return backbone.state_dict()


class Side:
    """Calls of one model."""

    def __init__(self, name: str, backbone: dict[str, Tensor], options: argparse.Namespace) -> None:
        self.model = make_model(name, options.instances).to(options.device)
        self.model.backbone.bottom_up.load_state_dict(backbone)
        self.watch = Stopwatch(self.model, PARTS, clock_of(options.device, options.cpu_time))
        self.inputs = [{"image": make_image(options.size)}]

    def run(self) -> dict[str, Any]:
        """One inference."""
        self.watch.start("total")
        with torch.inference_mode():
            result = self.model(self.inputs)[0]
        self.watch.stop("total")
        return result

    def medians(self) -> dict[str, float]:
        times = self.watch.medians()
        parts = {part: times[part] for part in PARTS}
        return {**parts, "the rest": times["total"] - sum(parts.values()), "total": times["total"]}


def print_times(options: argparse.Namespace) -> None:
    """A table: milliseconds of each part of each model."""
    backbone = calibrated_backbone(options)
    sides = {name: Side(name, backbone, options) for name in MODELS}
    for name, side in sides.items():
        detections = side.run()["instances"]
        parameters = sum(p.numel() for p in side.model.parameters()) / 1e6
        print(f"- {name}: {len(detections)} detections, {parameters:.1f} M parameters")
    for number in range(options.rounds):
        for side in sides.values():
            if not number:
                side.watch.times.clear()
            side.run()
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    medians = {name: side.medians() for name, side in sides.items()}
    print(f"\n| ms | {' | '.join(sides)} |\n|---|{'---:|' * len(sides)}")
    for part in (*PARTS, "the rest", "total"):
        print(f"| {part} | {' | '.join(f'{medians[name][part]:.0f}' for name in sides)} |")
    peer = next(iter(medians.values()))["total"]
    ratios = " | ".join(f"{peer / times['total']:.2f}x" for times in medians.values())
    print(f"| Detectron2's time by it | {ratios} |", flush=True)


def measure_memory(options: argparse.Namespace) -> float:
    """MiB by which one inference raises the peak above the loaded model."""
    side = Side(options.measure, calibrated_backbone(options), options)
    return peak_growth(side.run, options.device)


def print_memory(options: argparse.Namespace) -> None:
    """Print one row; each model is measured in a separate process."""
    peaks = []
    for name in MODELS:
        command = [sys.executable, __file__, *sys.argv[1:], "--measure", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout.split()[-1]))
    print(f"| peak memory, +MiB | {' | '.join(f'{peak:.0f}' for peak in peaks)} |", flush=True)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=parse_size, default=(512, 1024))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--instances", type=int, default=60, help="detections each model keeps")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", 2)))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cpu-time", action="store_true", help="processor time of all threads")
    parser.add_argument("--measure", choices=list(MODELS), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Print Markdown tables."""
    logging.disable(logging.WARNING)
    options = parse_options()
    torch.set_num_threads(options.threads)
    if options.measure:
        print(measure_memory(options))
        return
    height, width = options.size
    print(
        f"{platform.machine()}, {options.device}, {options.threads} threads, torch "
        f"{torch.__version__}; {height} x {width}; load {os.getloadavg()[0]:.1f}\n"
    )
    print_times(options)
    print_memory(options)


if __name__ == "__main__":
    main()
