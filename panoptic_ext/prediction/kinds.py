"""The panoptic, the instance or the semantic result of one picture, from a model's outputs.

A panoptic model answers all three. Shapes: H x W the image, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from panoptic_ext.errors import ConfigError, check_known
from panoptic_ext.prediction.panoptic_result import PanopticResult

__all__ = ["KINDS", "result_of_kind"]

KINDS = ("panoptic", "instance", "semantic")


def result_of_kind(
    kind: str,
    outputs: Mapping[str, Any],
    metadata: Any,
    image: np.ndarray | Callable[[], np.ndarray] | None = None,
    *,
    file_name: str = "",
    min_score: float = 0.0,
) -> PanopticResult:
    """The result of one image in one of three ways.

    Args:
        kind: "panoptic": things and stuff. "instance": things alone, those of the panoptic result
            where the model has one, so that the pictures of an image agree with each other.
            "semantic": a region for each class, by the semantic scores where the model has them,
            else the segments of each class together.
        outputs: of the model, with "panoptic_seg", "instances" or "sem_seg".
        metadata, image, file_name: as those of `PanopticResult`.
        min_score: things with a lower score are left out; semantic results have no scores.

    Raises:
        ConfigError: an unknown kind, or the model does not answer it.
    """
    check_known("kind", kind, KINDS)
    given: dict[str, Any] = {"metadata": metadata, "image": image, "file_name": file_name}
    needed = {"panoptic": (), "instance": ("instances",), "semantic": ("sem_seg",)}[kind]
    if "panoptic_seg" not in outputs and not any(name in outputs for name in needed):
        raise ConfigError(_not_answered(kind, outputs))
    if kind == "semantic":
        return _semantic(outputs, given)
    result = PanopticResult.from_outputs(outputs, **given, min_score=min_score)
    isthing = True if kind == "instance" else None
    return result.filter(min_score=min_score, isthing=isthing)


def _semantic(outputs: Mapping[str, Any], given: dict[str, Any]) -> PanopticResult:
    if "panoptic_seg" not in outputs:
        return PanopticResult.from_outputs({"sem_seg": outputs["sem_seg"]}, **given)
    panoptic = PanopticResult.from_outputs(outputs, **given)
    scores = outputs.get("sem_seg")
    # Detectron2's Panoptic FPN has one semantic class for all things together: not used.
    if scores is not None and len(scores) == len(panoptic.class_names):
        return PanopticResult.from_outputs({"sem_seg": scores}, **given)
    return _merged(panoptic, given["image"])


def _merged(result: PanopticResult, image: Any) -> PanopticResult:
    """One segment for each class, whose id is 1 + the class's contiguous id."""
    classes = torch.zeros_like(result.panoptic_seg)
    for segment in result:
        classes[result.panoptic_seg == segment.id] = segment.class_id + 1
    found = sorted({segment.class_id for segment in result})
    regions = [{"id": i + 1, "category_id": i, "isthing": False} for i in found]
    return PanopticResult(classes, regions, result.metadata, image, file_name=result.file_name)


def _not_answered(kind: str, outputs: Mapping[str, Any]) -> str:
    names = {"panoptic_seg": "panoptic", "instances": "instance", "sem_seg": "semantic"}
    known = [repr(names[name]) for name in names if name in outputs]
    return (
        f"the model gives no {kind} result, only {', '.join(sorted(outputs)) or 'nothing'}; "
        + (f"ask for kind={' or '.join(known)}, or " if known else "")
        + "take a panoptic model, which answers all three kinds"
    )
