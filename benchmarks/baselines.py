"""PQ of a trained model, of an untrained one, and of one class predicted everywhere.

    python benchmarks/baselines.py --config-file CONFIG [--weights FILE] KEY VALUE ...

The constant prediction is one stuff segment over the whole image. Its class is the stuff class that
covers most pixels of the training set. Weights default to the last checkpoint of OUTPUT_DIR.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.utils.logger import setup_logger
from tabulate import tabulate

from panoptic_ext.data import get_records
from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.engine.device import choose_device
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.engine.trainer import Trainer
from panoptic_ext.errors import CheckpointError, PanopticExtError


class ConstantPrediction(torch.nn.Module):
    """A model that predicts one stuff segment over the whole of every image."""

    def __init__(self, category_id: int) -> None:
        super().__init__()
        self.category_id = category_id

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        segments = [{"id": 1, "category_id": self.category_id, "isthing": False}]
        return [
            {
                "panoptic_seg": (
                    torch.ones(x["height"], x["width"], dtype=torch.int32),
                    [dict(s) for s in segments],
                )
            }
            for x in batched_inputs
        ]


def commonest_stuff(dataset_name: str) -> int:
    """Contiguous id of the stuff class with the most pixels."""
    pixels: Counter[int] = Counter()
    for record in get_records(dataset_name):
        for segment in record["segments_info"]:
            if not segment["isthing"]:
                pixels[segment["category_id"]] += segment["area"]
    return pixels.most_common(1)[0][0]


def trained_model(cfg: Any, weights: str) -> torch.nn.Module:
    model = Trainer.build_model(cfg)
    checkpointer = Checkpointer(model, cfg.OUTPUT_DIR)
    path = weights or checkpointer.get_checkpoint_file()
    if not path:
        raise CheckpointError(f"no checkpoint in {cfg.OUTPUT_DIR}; train first or give --weights")
    checkpointer.load(path, checkpointables=[], strict=True)
    return model


def run(args: argparse.Namespace) -> None:
    cfg = load_cfg(args.config_file, args.opts)
    cfg.defrost()
    cfg.TEST.CONTACT_SHEET = 0
    cfg.TEST.EVALUATORS = ["panoptic"]
    choose_device(cfg)
    name = cfg.DATASETS.TRAIN[0]
    stuff = commonest_stuff(name)
    torch.manual_seed(0)
    models = {
        f"{MetadataCatalog.get(name).stuff_classes[stuff]} everywhere": ConstantPrediction(stuff),
        "untrained model": Trainer.build_model(cfg),
        "trained model": trained_model(cfg, args.weights),
    }
    keys = ["PQ", "SQ", "RQ", "PQ_th", "PQ_st"]
    rows = []
    for label, model in models.items():
        cfg.OUTPUT_DIR = f"{args.output}/{label.replace(' ', '_')}"
        results = Trainer.test(cfg, model)["panoptic_seg"]
        rows.append([label, *(results[k] for k in keys)])
    sys.stdout.write(tabulate(rows, ["", *keys], tablefmt="github", floatfmt=".2f") + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", default="", help="default: last checkpoint of OUTPUT_DIR")
    parser.add_argument("--output", default="output/baselines", help="folder for evaluation files")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ...")
    setup_logger(name="detectron2").setLevel(logging.WARNING)
    try:
        run(parser.parse_args())
    except PanopticExtError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
