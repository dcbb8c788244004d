#!/usr/bin/env python
"""Speed of panoptic evaluation: ours, Detectron2's with PNGs, torchmetrics, and a lower bound.

All routes get the same predictions, as maps in memory, and the same truth, as PNGs on disk, in one
process. A round runs each of them once, and the table has medians over rounds, of ratios too. The
wall clock depends on other work on the machine. CPU time does not, but does not show the gain of
threads.
- PNG route: Detectron2's COCOPanopticEvaluator.process (id2rgb, PNG encoding), its writing of the
  PNGs, and cityscapesscripts' matching, which is panopticapi's, on one core (PNG decoding).
- torchmetrics: its PanopticQuality, which has other rules (no crowds), on maps in memory, without
  any PNG.
- floor: decompressing the truth's PNGs (zlib), which every route from files must do.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import types
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator

from panoptic_ext.data import write_id_map
from panoptic_ext.data.coco.label_png import read_runs
from panoptic_ext.data.coco.runs import runs_from_ids
from panoptic_ext.evaluation import PanopticEvaluator

NUM_CLASSES, NUM_THINGS = 133, 80
# height, width, segments, images
SIZES = {"480 x 640": (480, 640, 25, 40), "1024 x 2048": (1024, 2048, 50, 12)}
NAME = "benchmark_panoptic"


def regions(rng: np.random.Generator, height: int, width: int, num: int, wobble: float) -> Any:
    """A prediction and a truth: maps of `num` regions with ragged borders; 0 is void, a frame."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    seeds = rng.random((num, 2)) * (height, width)
    weights = rng.random(num) * 0.03 * height * width
    maps = []
    for _ in range(2):
        dy, dx = (_smooth_noise(rng, height, width) * wobble for _ in range(2))
        best, ids = (
            np.full((height, width), np.inf, np.float32),
            np.zeros((height, width), np.int32),
        )
        for number, (sy, sx) in enumerate(seeds, start=1):
            distance = (y + dy - sy) ** 2 + (x + dx - sx) ** 2 - weights[number - 1]
            ids[distance < best] = number
            best = np.minimum(best, distance)
        maps.append(ids)
    maps[1][:4] = maps[1][:, :4] = 0
    return maps


def _smooth_noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(H, W) float32 in [-1, 1]: large waves, small ones, and ragged pixels."""
    total = np.zeros((height, width), np.float32)
    for cell, size in ((64, 0.6), (8, 0.3), (1, 0.1)):
        shape = (1, 1, max(2, height // cell), max(2, width // cell))
        noise = torch.from_numpy(rng.random(shape, np.float32) * 2 - 1)
        grown = torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")
        total += size * grown[0, 0].numpy()
    return total


class Data:
    """Random images as files and in memory."""

    def __init__(self, folder: Path, height: int, width: int, segments: int, number: int):
        rng = np.random.default_rng(0)
        self.folder = folder
        self.root = folder / "truth"
        self.root.mkdir(parents=True)
        self.inputs: list[dict] = []
        self.outputs: list[dict] = []
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []
        annotations = []
        for i in range(number):
            pred, truth = regions(rng, height, width, segments, 0.02 * height)
            colours = rng.choice(2**24 - 1, segments, replace=False) + 1
            categories = rng.integers(0, NUM_CLASSES, segments)
            truth_ids = np.concatenate([[0], colours])[truth]
            file_name = f"{i:012d}.png"
            write_id_map(self.root / file_name, truth_ids)
            annotations.append(self._annotation(i, file_name, truth, colours, categories))
            self.inputs.append({"image_id": i, "file_name": f"images/{i:012d}.jpg"})
            self.outputs.append(
                {"panoptic_seg": (torch.from_numpy(pred), self._info(pred, categories))}
            )
            classes = np.concatenate([[0], categories])
            self.pairs.append(
                (np.stack([classes[pred], pred], -1), np.stack([classes[truth], truth], -1))
            )
        self.content = {
            "images": [{"id": i, "file_name": f"{i:012d}.jpg"} for i in range(number)],
            "annotations": annotations,
            "categories": [
                {"id": c + 1, "name": f"class {c}", "isthing": int(c < NUM_THINGS)}
                for c in range(NUM_CLASSES)
            ],
        }
        self.json = folder / "truth.json"
        self.json.write_text(json.dumps(self.content))
        self._register()

    @staticmethod
    def _annotation(
        number: int, file_name: str, truth: np.ndarray, colours: np.ndarray, categories: np.ndarray
    ) -> dict:
        areas = np.bincount(truth.reshape(-1), minlength=len(colours) + 1)[1:]
        return {
            "image_id": number,
            "file_name": file_name,
            "segments_info": [
                {"id": int(i), "category_id": int(c) + 1, "area": int(a), "iscrowd": 0}
                for i, c, a in zip(colours, categories, areas, strict=True)
                if a
            ],
        }

    @staticmethod
    def _info(pred: np.ndarray, categories: np.ndarray) -> list[dict]:
        return [
            {
                "id": int(i),
                "category_id": int(categories[i - 1]),
                "isthing": bool(categories[i - 1] < NUM_THINGS),
            }
            for i in np.unique(pred)
        ]

    def _register(self) -> None:
        if NAME in MetadataCatalog:
            MetadataCatalog.remove(NAME)
        MetadataCatalog.get(NAME).set(
            panoptic_json=str(self.json),
            panoptic_root=str(self.root),
            label_divisor=1000,
            thing_dataset_id_to_contiguous_id={c + 1: c for c in range(NUM_THINGS)},
            stuff_dataset_id_to_contiguous_id={c + 1: c for c in range(NUM_THINGS, NUM_CLASSES)},
        )

    def copies(self) -> list[dict]:
        """Outputs that Detectron2's evaluator may edit."""
        return [
            {"panoptic_seg": (o["panoptic_seg"][0], [dict(s) for s in o["panoptic_seg"][1]])}
            for o in self.outputs
        ]


def ours(data: Data, threads: int) -> Callable[[], float]:
    """Our evaluator, from its construction to its result."""

    def run() -> float:
        evaluator = PanopticEvaluator(NAME, num_threads=threads)
        evaluator.reset()
        for sample, output in zip(data.inputs, data.outputs, strict=True):
            evaluator.process([sample], [output])
        return evaluator.evaluate()["panoptic_seg"]["PQ"]

    return run


def png_route(data: Data) -> Callable[[], float]:
    """Detectron2's process and files, cityscapesscripts' matching on one core."""
    from cityscapesscripts.evaluation import evalPanopticSemanticLabeling as matching

    categories = {c["id"]: c for c in data.content["categories"]}

    def id2rgb(ids: np.ndarray) -> np.ndarray:
        quotient, rgb = ids.copy(), np.zeros((*ids.shape, 3), np.uint8)
        for channel in range(3):
            rgb[..., channel] = quotient % 256
            quotient //= 256
        return rgb

    # `id2rgb` is all that COCOPanopticEvaluator.process uses of panopticapi, which is not on PyPI.
    package, utils = types.ModuleType("panopticapi"), types.ModuleType("panopticapi.utils")
    utils.id2rgb = id2rgb  # type: ignore[attr-defined]
    sys.modules.update({"panopticapi": package, "panopticapi.utils": utils})

    def run() -> float:
        evaluator = COCOPanopticEvaluator(NAME)
        evaluator.reset()
        for sample, output in zip(data.inputs, data.copies(), strict=True):
            evaluator.process([sample], [output])
        with tempfile.TemporaryDirectory() as folder:
            for prediction in evaluator._predictions:
                path = os.path.join(folder, prediction["file_name"])
                Path(path).write_bytes(prediction.pop("png_string"))
            truth = json.loads(data.json.read_text())["annotations"]
            pairs = list(zip(truth, evaluator._predictions, strict=True))
            with contextlib.redirect_stdout(io.StringIO()):
                stat = matching.pq_compute_single_core(0, pairs, str(data.root), folder, categories)
        return 100 * stat.pq_average(categories, isthing=None)[0]["pq"]

    return run


def torchmetrics_route(data: Data, number: int) -> Callable[[], float] | None:
    """torchmetrics on the first images only, because it is slow."""
    try:
        from torchmetrics.detection import PanopticQuality
    except ImportError:
        return None
    pairs = [tuple(torch.from_numpy(m)[None] for m in pair) for pair in data.pairs[:number]]

    def run() -> float:
        metric = PanopticQuality(
            things=set(range(NUM_THINGS)), stuffs=set(range(NUM_THINGS, NUM_CLASSES))
        )
        for pred, truth in pairs:
            metric.update(pred, truth)
        return float(metric.compute())

    return run


def inflated(data: Data) -> Callable[[], int]:
    """Decompress the pixels of the truth's PNGs, and do nothing else."""
    streams = []
    for path in sorted(data.root.glob("*.png")):
        content, at, stream = path.read_bytes(), 8, b""
        while at < len(content):
            length = int.from_bytes(content[at : at + 4], "big")
            if content[at + 4 : at + 8] == b"IDAT":
                stream += content[at + 8 : at + 8 + length]
            at += 12 + length
        streams.append(stream)
    return lambda: sum(len(zlib.decompress(stream)) for stream in streams)


def measure(size: str, share: float, rounds: int) -> list[str]:
    """Rows of the table for one image size, with a share of its images."""
    height, width, segments, number = SIZES[size]
    number = max(1, round(share * number))
    with tempfile.TemporaryDirectory() as folder:
        data = Data(Path(folder), height, width, segments, number)
        slow = torchmetrics_route(data, 1)
        paths = sorted(map(str, data.root.glob("*.png")))
        maps = [output["panoptic_seg"][0].numpy() for output in data.outputs]
        routes: dict[str, tuple[Callable[[], Any], int]] = {
            "PNG route": (png_route(data), number),
            "ours, one thread": (ours(data, 0), number),
            "ours, 2 threads": (ours(data, 2), number),
            "- of it: truth to runs": (lambda: [read_runs(p) for p in paths], number),
            "- of it: prediction to runs": (lambda: [runs_from_ids(m) for m in maps], number),
            "floor: inflating the truth": (inflated(data), number),
        }
        if slow is not None:
            routes["torchmetrics"] = (slow, 1)
        results = {name: route() for name, (route, _) in routes.items() if name != "torchmetrics"}
        assert abs(results["PNG route"] - results["ours, one thread"]) < 1e-9
        assert results["ours, 2 threads"] == results["ours, one thread"]
        runs = statistics.mean(len(runs_from_ids(m).starts) for m in maps)
        print(f"{size}: PQ {results['PNG route']:.2f}, {runs:.0f} runs a map", file=sys.stderr)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in routes}
        for current in range(rounds):
            for name, (route, images) in routes.items():
                if name == "torchmetrics" and current:
                    continue
                start, start_cpu = time.perf_counter(), time.process_time()
                route()
                passed = (time.perf_counter() - start, time.process_time() - start_cpu)
                times[name].append((passed[0] / images, passed[1] / images))
    return [_row(size, name, times) for name in routes]


def _row(size: str, name: str, times: dict[str, list[tuple[float, float]]]) -> str:
    cells = []
    for kind in range(2):  # wall clock, CPU
        route_times = [t[kind] for t in times[name]]
        # torchmetrics ran in the first round only.
        ratios = [a[kind] / b for a, b in zip(times["PNG route"], route_times, strict=False)]
        ratio = f"{statistics.median(ratios):.{1 if ratios[0] >= 1 else 3}f}"
        cells += [f"{1000 * statistics.median(route_times):.2f}", "" if name[0] == "-" else ratio]
    return f"| {size} | {name} | {' | '.join(cells)} |"


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the images")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    import PIL

    numbers = " and ".join(str(max(1, round(args.share * s[3]))) for s in SIZES.values())
    print(
        f"{os.cpu_count()} CPU cores ({platform.machine()}), Python {platform.python_version()},"
        f" numpy {np.__version__}, torch {torch.__version__}, Pillow {PIL.__version__}; medians of"
        f" {args.rounds} rounds of {numbers} images.\n"
    )
    print("| size | route | ms an image | PNG route by it | CPU ms | PNG route by it |")
    print("|---|---|---:|---:|---:|---:|")
    for size in SIZES:
        print("\n".join(measure(size, args.share, args.rounds)), flush=True)


if __name__ == "__main__":
    main()
