"""Estimate how long an evaluation takes, by some of its images."""

from __future__ import annotations

from itertools import islice
from time import perf_counter
from typing import Any

import torch
from detectron2.evaluation import inference_context
from torch.nn.parallel import DistributedDataParallel

from panoptic_ext.engine.checkpoint.rng import preserved_rng
from panoptic_ext.engine.precision import evaluation_precision

__all__ = ["estimate_evaluation", "now"]

now = perf_counter
"""The clock, in seconds."""

_NUM_IMAGES = 2
_WITH_COMPARISON = 1.2  # of the time of the model alone: the comparison runs beside it


def estimate_evaluation(trainer: Any) -> float:
    """Seconds of an evaluation on DATASETS.TEST, by the time of the first images of each set.

    The state of the model and of the random generators is the same afterwards.

    Args:
        trainer: a `Trainer`, or what has its `cfg`, `model` and `build_test_loader`.
    """
    cfg = trainer.cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = 0  # they would read ahead
    model = trainer.model
    model = model.module if isinstance(model, DistributedDataParallel) else model
    seconds = 0.0
    with preserved_rng(), evaluation_precision(cfg).autocast(), inference_context(model):
        for name in cfg.DATASETS.TEST:
            loader = trainer.build_test_loader(cfg, name)
            began, num_done = now(), 0
            for batch in islice(loader, _NUM_IMAGES):
                with torch.no_grad():
                    model(batch)
                num_done += 1
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds += _WITH_COMPARISON * (now() - began) / max(num_done, 1) * len(loader)
    return seconds
