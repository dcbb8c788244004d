"""The last line of a training: how good it is, where its weights lie, and how to use them."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping
from typing import Any

from panoptic_ext.engine.checkpoint.files import best_checkpoint

__all__ = ["closing_line"]

_METRICS = (("panoptic_seg", "PQ"), ("segm", "AP"), ("sem_seg", "mIoU"))


def closing_line(folder: str, results: Mapping[str, Any] | None) -> str:
    """One line about a run that has ended.

    Args:
        folder: OUTPUT_DIR of the run.
        results: of its last evaluation, as Detectron2's evaluators return them, {task: {metric:
            value}}, or by data set where there are several; None without an evaluation.
    """
    numbers = _numbers(results or {})
    quality = f"{', '.join(numbers)} at the end. " if numbers else ""
    best = best_checkpoint(folder)
    weights = best or os.path.join(folder, "model_final.pth")
    which = " (those of the best evaluation)" if best else ""
    return (
        f"Training has ended: {quality}Weights: {weights}{which}. To use them: panoptic-ext "
        f"predict --model {shlex.quote(folder)} IMAGES"
    )


def _numbers(results: Mapping[str, Any]) -> list[str]:
    """Such as ["PQ 33.3", "AP 12.0"]; of several data sets, each with its name."""
    found = [
        f"{metric} {results[task][metric]:.1f}"
        for task, metric in _METRICS
        if task in results and math.isfinite(results[task].get(metric, math.nan))
    ]
    if found or not all(isinstance(value, Mapping) for value in results.values()):
        return found
    return [f"{name} {text}" for name, value in results.items() for text in _numbers_of(value)]


def _numbers_of(value: Mapping[str, Any]) -> list[str]:
    return _numbers(value) if all(isinstance(v, Mapping) for v in value.values()) else []
