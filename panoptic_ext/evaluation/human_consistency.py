"""How well people agree with each other, and a model beside them.

Two annotators drew the same images. Either is the truth in turn: PQ is symmetric as long as neither
has void or crowd, but void of the truth is left out and void of the prediction is missed, and a
crowd of the truth excuses what is in it while that of a prediction is a segment like any other. So
both ways are given, and their mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from panoptic_ext.errors import EvaluationError
from panoptic_ext.evaluation.compare_files import FileResult, evaluate_files
from panoptic_ext.evaluation.comparison import compare_results
from panoptic_ext.evaluation.formats import markdown_table, number_text, or_none
from panoptic_ext.evaluation.measures import Measures, mean_of
from panoptic_ext.evaluation.report import metric_keys, named_result

__all__ = [
    "PUBLISHED",
    "Files",
    "HumanConsistency",
    "consistency_text",
    "human_consistency",
    "named_consistency",
]

PUBLISHED: dict[str, tuple[float, float, float]] = {
    "Cityscapes": (69.7, 71.3, 67.4),
    "ADE20k": (67.1, 70.3, 65.9),
    "Vistas": (57.5, 62.6, 53.4),
    "COCO": (53.5, 47.1, 57.8),
}
"""PQ, PQ_st and PQ_th of people in percent: Kirillov et al., "Panoptic Segmentation", CVPR 2019 (of
COCO: the authors' tutorial on its panoptic task)."""

_KEYS = ("PQ", "PQ_st", "PQ_th")

Files = tuple[str, str | None]
"""A COCO panoptic JSON, and the folder of its PNGs or None, see `evaluate_files`."""


@dataclass(frozen=True)
class HumanConsistency:
    """The results of annotators A and B, and of a model, on each other.

    Attributes:
        results: (name of the truth, of the prediction) -> measures, on the same images: (A, B) and
            (B, A), and with a model (A, model) and (B, model).
    """

    results: dict[tuple[str, str], Measures]

    @property
    def num_images(self) -> int:
        """Number of images, the same of all results."""
        return len(next(iter(self.results.values())).images)

    def mean(self, *, of_model: bool) -> dict[str, float]:
        """Mean PQ, PQ_st and PQ_th of both ways, in percent, of the people or of the model."""
        found = [
            metric_keys(measures.summary)
            for (_, prediction), measures in self.results.items()
            if (prediction == "model") == of_model
        ]
        return {key: mean_of(row[key] for row in found) for key in _KEYS}

    @property
    def sentences(self) -> list[str]:
        """On each truth, whether the model is worse or better than the other annotator."""
        lines = []
        for truth, other in (("A", "B"), ("B", "A")):
            if (truth, "model") in self.results:
                people, model = self.results[truth, other], self.results[truth, "model"]
                comparison = compare_results(people, model, dict.fromkeys(people.images, ""))
                sentence = comparison.sentence(f"annotator {other}", "the model")
                lines.append(f"On the truth of {truth}: {sentence}")
        return lines


def human_consistency(
    first: Files,
    second: Files,
    model: Files | None = None,
    *,
    only_common: bool = False,
    **options: Any,
) -> HumanConsistency:
    """Compare two annotators with each other, and a model with both.

    Args:
        first, second: truths of the same images, with areas and crowds; A and B.
        model: predictions for these images.
        only_common: take the images that all have, and leave out all others.
        options: others of `evaluate_files`.

    Raises:
        EvaluationError: as `evaluate_files`.
    """
    truths = {"A": first, "B": second}
    pairs = {("A", "B"): second, ("B", "A"): first}
    if model is not None:
        pairs |= {("A", "model"): model, ("B", "model"): model}
    found: dict[tuple[str, str], FileResult] = {
        pair: evaluate_files(*truths[pair[0]], *prediction, only_common=only_common, **options)
        for pair, prediction in pairs.items()
    }
    # The ids 7 and "7" are one image, so that ids are compared as text.
    common = set.intersection(*({str(i) for i in r.measures.images} for r in found.values()))
    if not common:
        raise EvaluationError(
            "the annotators and the model have no image id in common; give an image the same id in "
            "all JSONs"
        )
    return HumanConsistency(
        {
            pair: r.measures.subset([i for i in r.measures.images if str(i) in common])
            for pair, r in found.items()
        }
    )


def consistency_text(consistency: HumanConsistency) -> str:
    """A Markdown table of the results, their means and the published figures, and sentences."""
    rows: list[list[str]] = []
    for of_model in (False, True):
        pairs = [p for p in consistency.results if (p[1] == "model") == of_model]
        rows += [_row(pair, consistency.results[pair]) for pair in pairs]
        if pairs:
            name = "**the model, mean**" if of_model else "**people, mean**"
            mean = consistency.mean(of_model=of_model)
            rows.append([name, "", *(number_text(mean[key], ".2f") for key in _KEYS), ""])
    rows += [
        [f"people, {name} (published)", "", *(f"{v:.2f}" for v in values), ""]
        for name, values in PUBLISHED.items()
    ]
    table = markdown_table(
        rows, ["prediction", "truth", *_KEYS, "95 % interval of PQ"], first_texts=2
    )
    heading = f"Human consistency, {consistency.num_images} images:"
    return "\n\n".join([f"{heading}\n{table}", *consistency.sentences])


def named_consistency(consistency: HumanConsistency) -> dict[str, Any]:
    """The same for a JSON file, with all that `report.named_result` has of each result."""
    has_model = any(prediction == "model" for _, prediction in consistency.results)
    people = {"people": consistency.mean(of_model=False)}
    means = people | ({"model": consistency.mean(of_model=True)} if has_model else {})
    return {
        "images": consistency.num_images,
        "mean": {
            name: {key: or_none(value) for key, value in mean.items()}
            for name, mean in means.items()
        },
        "sentences": consistency.sentences,
        "published": {
            name: dict(zip(_KEYS, values, strict=True)) for name, values in PUBLISHED.items()
        },
        "results": [
            {"truth": truth, "prediction": prediction, **named_result(measures)}
            for (truth, prediction), measures in consistency.results.items()
        ],
    }


def _row(pair: tuple[str, str], measures: Measures) -> list[str]:
    keys = metric_keys(measures.summary)
    low, high = measures.intervals["PQ"]
    interval = "n/a" if math.isnan(low) else f"{low:.2f} to {high:.2f}"
    return [pair[1], pair[0], *(number_text(keys[key], ".2f") for key in _KEYS), interval]
