"""Compare fusions on the same weights: one inference per image, one evaluator per fusion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode as CN
from torch import nn

from panoptic_ext.errors import ConfigError, quoted
from panoptic_ext.fusion import PANOPTIC_FUSION_REGISTRY
from panoptic_ext.interruption import until_stopped
from panoptic_ext.prediction.predictor import Predictor

__all__ = [
    "FUSIONS",
    "compare_fusions",
    "fusion_table",
    "fusions_left_out",
    "fusions_of",
    "load_test_data",
]

_HOW_TO_GO_ON = (
    "stopped after {} images; there is no result, and the same command compares from the first "
    "image"
)

FUSIONS = ("hadamard", "heuristic", "upsnet", "spatial_ranking")
"""The fusions compared by default; a learned one only where the model was trained with it.

`naive` works on files of any two models: panoptic-ext combine.
"""

QUALITIES = ("PQ", "PQ_th", "PQ_st", "SQ", "RQ")


def fusions_of(predictor: Predictor, names: Sequence[str] = ()) -> dict[str, nn.Module]:
    """The fusions to compare on a model's weights.

    Args:
        predictor: of a model with a fusion (EfficientPS, Panoptic FPN).
        names: values of MODEL.PANOPTIC_FUSION.NAME. None of them: `FUSIONS`, without the learned
            ones that the model was not trained with.

    Returns:
        name -> fusion, in eval mode on the model's device.

    Raises:
        ConfigError: the model has no fusion, a name is unknown, or `names` has a learned fusion
            that the model was not trained with.
    """
    model = predictor.model
    if not hasattr(model, "fusion"):
        raise ConfigError(
            f"{type(model).__name__} has no fusion to compare; expected a model that takes one, "
            "MODEL.META_ARCHITECTURE EfficientPS or UnifiedPanopticFPN (Panoptic FPN)"
        )
    name_in_model = predictor.cfg.MODEL.PANOPTIC_FUSION.NAME or model.default_fusion
    fusions: dict[str, nn.Module] = {}
    for name in names or FUSIONS:
        if name == name_in_model:
            # Not built anew: a learned fusion has its trained parameters in the model alone.
            fusions[name] = model.fusion
            continue
        cfg = predictor.cfg.clone()
        cfg.defrost()
        cfg.MODEL.PANOPTIC_FUSION.NAME = name
        fusion = model.build_fusion(cfg, thing_ids=model.thing_ids.tolist())
        # The weights hold parameters of the model's fusion only; those of another are random.
        if any(True for _ in fusion.parameters()):
            text = f"{predictor.weights} was not trained with the fusion {quoted(name)}"
            if names:
                raise ConfigError(f"{text}; train with MODEL.PANOPTIC_FUSION.NAME {name}")
            continue
        fusions[name] = fusion.to(model.thing_ids.device).eval()
    return fusions


def fusions_left_out(predictor: Predictor, fusions: Mapping[str, nn.Module]) -> dict[str, str]:
    """The registered fusions that `fusions_of` left out, each with the reason."""
    reasons = {}
    for name, fusion in PANOPTIC_FUSION_REGISTRY:
        if name in fusions:
            continue
        if name == "heuristic_detectron2":
            reasons[name] = "gives the same as heuristic, by Detectron2's own code, more slowly"
        elif fusion.wants_training:
            reasons[name] = (
                f"has to be learned, and {predictor.weights} was not trained with it "
                f"(MODEL.PANOPTIC_FUSION.NAME {name})"
            )
        else:
            reasons[name] = "is compared where it is named (--fusions)"
    return reasons


def compare_fusions(
    predictor: Predictor,
    fusions: Mapping[str, nn.Module],
    data: Any,
    *,
    make_evaluator: Callable[[], Any],
    on_image: Callable[[dict[str, Any], dict[str, Any]], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Evaluate the panoptic quality of each fusion.

    Args:
        predictor: of a model with `inference(inputs, do_postprocess=False)`, `postprocess_one` and
            a `fusion`, which is restored at the end.
        fusions: by name.
        data: batches of mapped test inputs.
        make_evaluator: makes a PanopticEvaluator for each fusion.
        on_image: called with each input and its {name: (panoptic_seg, segments_info)}.

    Returns:
        For each name PQ, PQ_th, PQ_st, SQ and RQ in percent.
    """
    model = predictor.model
    fusion_of_model = model.fusion
    evaluators = {name: make_evaluator() for name in fusions}
    try:
        for batch in until_stopped(data, _HOW_TO_GO_ON.format):
            # The network, which takes most of the time, runs once for all fusions.
            with torch.no_grad(), predictor.precision.autocast():
                instances, sem_seg = model.inference(batch, do_postprocess=False)
            for detected, logits, inputs in zip(instances, sem_seg, batch, strict=True):
                results = {}
                for name, fusion in fusions.items():
                    model.fusion = fusion
                    with torch.no_grad(), predictor.precision.autocast():
                        output = model.postprocess_one(detected, logits, inputs)
                    evaluators[name].process([inputs], [output])
                    results[name] = output["panoptic_seg"]
                if on_image is not None:
                    on_image(inputs, results)
    finally:
        model.fusion = fusion_of_model
    metrics = {name: evaluator.evaluate()["panoptic_seg"] for name, evaluator in evaluators.items()}
    return {
        name: {key: float(values[key]) for key in QUALITIES} for name, values in metrics.items()
    }


def fusion_table(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """A Markdown table with a row per fusion: the mean over the runs and, of several, their range.

    Args:
        runs: results of `compare_fusions`, one for each run. A fusion that a run lacks is left out.
    """
    names = [name for name in runs[0] if all(name in run for run in runs)]
    lines = [f"| fusion | {' | '.join(QUALITIES)} |", "|---|" + "---:|" * len(QUALITIES)]
    for name in names:
        cells = []
        for key in QUALITIES:
            values = [run[name][key] for run in runs]
            spread = f" ({min(values):.1f} to {max(values):.1f})" if len(runs) > 1 else ""
            cells.append(f"{sum(values) / len(values):.2f}{spread}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def load_test_data(cfg: CN) -> tuple[str, Any]:
    """Name and loader of the first data set in DATASETS.TEST."""
    from panoptic_ext.engine.loader import build_test_loader

    if not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST is empty; name the data set to compare fusions on")
    name = cfg.DATASETS.TEST[0]
    return name, build_test_loader(cfg, name)
