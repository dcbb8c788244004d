"""Models of transformers here against transformers' own pipeline and post-processing.

    python benchmarks/transformers_models.py [--images 8] [--repeats 5]

First the agreement of small random models of every family on photographs (../shared/data/facade, or
random pictures where it is missing), with stuff that queries share: segments, classes, scores,
areas, pixels that differ, and ids that transformers gives to two segments. Then the time of the
panoptic map from outputs of usual size, on one thread. Nothing is fetched.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import transformers
from PIL import Image

from panoptic_ext.modeling.meta_arch.transformers_segmentation import QuerySegmentation, Thresholds
from panoptic_ext.modeling.transformers_models.families import FAMILIES, QueryOutputs
from panoptic_ext.postprocessing import MaskOutputs, Sizes
from tests.shared_data import shared_data_folder
from tests.tiny.finished_run import picture
from tests.tiny.transformers_models import save_tiny
from tests.tiny.transformers_predictor import CLASSES, LOW, post_processed, tiny_predictor

STUFF = (0, 1, 2)
QUERIES, LABELS, CELLS, PIXELS = 100, 133, (200, 304), (800, 1216)
PROCESSORS = {
    "detr": transformers.DetrImageProcessor,
    "maskformer": transformers.MaskFormerImageProcessor,
    "mask2former": transformers.Mask2FormerImageProcessor,
    "oneformer": transformers.OneFormerImageProcessor,
    "eomt": transformers.EomtImageProcessor,
}


def images(count: int) -> list[np.ndarray]:
    """BGR photographs, at most 640 pixels long."""
    paths = sorted((shared_data_folder() / "facade" / "images").rglob("*.jpg"))[:count]
    opened = [Image.open(path).convert("RGB") for path in paths]
    for image in opened:
        image.thumbnail((640, 640))
    opened = opened or [picture(i, 240 + 20 * i, 320) for i in range(count)]
    return [np.asarray(image)[..., ::-1] for image in opened]


def agreement(family: str, pictures: list[np.ndarray]) -> dict[str, Any]:
    """Counts over all pictures."""
    with tempfile.TemporaryDirectory() as folder:
        save_tiny(family, folder, CLASSES, things=range(len(CLASSES)))
        names = str([CLASSES[i] for i in STUFF])
        predictor = tiny_predictor(folder, MODEL__TRANSFORMERS__STUFF_CLASSES=names, **LOW)
        row = {"segments": 0, "other class": 0, "score off": 0.0, "other pixels": 0, "ids twice": 0}
        for image in pictures:
            ids, segments = predictor(image)["panoptic_seg"]
            their_map, listed = post_processed(predictor.model, image, STUFF)
            firsts = [
                s for i, s in enumerate(listed)
                if s["label_id"] not in STUFF
                or s["label_id"] not in [other["label_id"] for other in listed[:i]]
            ]  # fmt: skip
            row["segments"] += len(segments)
            row["other class"] += abs(len(firsts) - len(segments))
            table = torch.full((len(segments) + 1,), -1 if (their_map < 0).any() else 0)
            for segment, their in zip(segments, firsts, strict=False):
                row["other class"] += segment["category_id"] != their["label_id"]
                if segment["isthing"]:
                    off = abs(segment["score"] - their["score"])
                    row["score off"] = max(row["score off"], off)
                table[segment["id"]] = their["id"]
            row["other pixels"] += int((table[ids.long()] != their_map).sum())
            row["ids twice"] += len(firsts) - len({their["id"] for their in firsts})
        row["pixels"] = sum(image.shape[0] * image.shape[1] for image in pictures)
    return row


def usual_outputs(family: str, kept: int = 30) -> QueryOutputs:
    """Outputs of a trained model: compact masks, `kept` of them with a sure class."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(1, QUERIES, LABELS + 1)
    logits[..., -1] = 9.0
    for query in torch.randperm(QUERIES, generator=generator)[:kept]:
        logits[0, query, -1] = 0.0
        logits[0, query, int(torch.randint(0, LABELS, (), generator=generator))] = 9.0
    size = (160, 160) if FAMILIES[family].is_square else CELLS
    y, x = torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij")
    centres = torch.rand(QUERIES, 2, 1, 1, generator=generator) * torch.tensor(size).view(2, 1, 1)
    radius = 10 + 40 * torch.rand(QUERIES, 1, 1, generator=generator)
    distance = ((y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2).sqrt()
    return QueryOutputs(logits, (radius - distance).clamp(-12, 12)[None])


def milliseconds(call: Callable[[], Any], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def speed(family: str, repeats: int) -> dict[str, float]:
    """Time of the panoptic map of one image: theirs, ours by the same rule and as published."""
    outputs, kind = usual_outputs(family), FAMILIES[family]
    square = (640, 640) if kind.is_square else None
    processor = PROCESSORS[family]()
    raw = SimpleNamespace(
        **{kind.class_logits: outputs.class_logits, kind.mask_logits: outputs.mask_logits}
    )
    things = range(80)
    shared: dict[str, Any] = {"label_ids_to_fuse": set(range(80, LABELS))}
    if square:
        shared = {"stuff_classes": list(range(80, LABELS))}
    sizes = Sizes(
        image_size=(421, 640) if square else PIXELS, padded_size=square or PIXELS,
        output_size=PIXELS,
    )  # fmt: skip
    row = {
        "theirs": milliseconds(
            lambda: processor.post_process_panoptic_segmentation(
                raw, threshold=0.8, target_sizes=[PIXELS], **shared
            ),
            repeats,
        )
    }
    for rule in ("transformers", "published"):
        segmentation = QuerySegmentation(
            kind,
            MaskOutputs(panoptic=True, thing_ids=things),
            label_of_class=range(LABELS),
            num_labels=LABELS,
            rule=rule,
            thresholds=Thresholds(0.8, 0.5, 0.8),
        )
        row[rule] = milliseconds(lambda run=segmentation: run(outputs, [sizes]), repeats)
    return row


def table(title: str, rows: dict[str, dict[str, Any]]) -> str:
    names = list(next(iter(rows.values())))
    lines = [f"| {title} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for family, row in rows.items():
        values = (
            f"{v:.2g}" if isinstance(v, float) and v < 1 else f"{v:.0f}" for v in row.values()
        )
        lines.append(f"| {family} | {' | '.join(values)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    pictures = images(args.images)
    rows = {family: agreement(family, pictures) for family in FAMILIES}
    sys.stdout.write(table("agreement", rows) + "\n\n")
    times = {family: speed(family, args.repeats) for family in PROCESSORS}
    for row in times.values():
        row["theirs / ours"] = row["theirs"] / row["transformers"]
    sys.stdout.write(table("ms for one map", times) + "\n")


if __name__ == "__main__":
    main()
