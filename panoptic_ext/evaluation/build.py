"""The evaluators of a run, from its config."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm

from panoptic_ext.data import has_instances_alone, thing_ids
from panoptic_ext.errors import check_known
from panoptic_ext.evaluation.instance_evaluation import PanopticInstanceEvaluator
from panoptic_ext.evaluation.instances_json_evaluation import build_instances_json_evaluator
from panoptic_ext.evaluation.panoptic_evaluation import PanopticEvaluator
from panoptic_ext.evaluation.semantic_evaluation import PanopticSemSegEvaluator
from panoptic_ext.evaluation.truth import TruthRecords

__all__ = ["EVALUATORS", "IfGiven", "PanopticEvaluators", "build_evaluator"]

logger = logging.getLogger(__name__)

EVALUATORS = {"panoptic": "panoptic_seg", "semantic": "sem_seg", "instance": "instances"}
"""Names for TEST.EVALUATORS, and the key of the model's output that each evaluates."""


class IfGiven(DatasetEvaluator):
    """Runs an evaluator if the model's output has its key; else says so, once, and goes on."""

    def __init__(self, evaluator: DatasetEvaluator, key: str, name: str):
        """
        Args:
            evaluator: that reads `key` of the model's output.
            key: of the model's output dicts.
            name: as in TEST.EVALUATORS.
        """
        self.evaluator = evaluator
        self._key, self._name = key, name
        self._given = False

    def __getattr__(self, name: str) -> Any:
        """Attributes of the evaluator, as its results."""
        if name == "evaluator":
            raise AttributeError(name)
        return getattr(self.evaluator, name)

    def reset(self) -> None:
        """Forget all predictions."""
        self._given = False
        self.evaluator.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Pass on what has the key."""
        pairs = [
            (given, output)
            for given, output in zip(inputs, outputs, strict=True)
            if output.get(self._key) is not None
        ]
        if pairs:
            self._given = True
            self.evaluator.process([p[0] for p in pairs], [p[1] for p in pairs])

    def evaluate(self) -> dict | None:
        """The evaluator's result; {} if no worker's model gave the key."""
        if any(comm.all_gather(self._given)):
            return self.evaluator.evaluate()
        logger.info(
            "TEST.EVALUATORS has %r, but the model gives no %r: skipped", self._name, self._key
        )
        return {}


class PanopticEvaluators(DatasetEvaluators):
    """The evaluators of `build_evaluator`.

    Attributes:
        panoptic: the PanopticEvaluator among them (per_image, worst, best, summary), or None.
    """

    def __init__(self, evaluators: list[IfGiven]):
        super().__init__(evaluators)
        found = [e.evaluator for e in evaluators if isinstance(e.evaluator, PanopticEvaluator)]
        self.panoptic: PanopticEvaluator | None = found[0] if found else None

    def wait(self) -> None:
        """Wait until all predictions so far are compared; see `PanopticEvaluator.wait`."""
        if self.panoptic is not None:
            self.panoptic.wait()

    def evaluate(self) -> OrderedDict:
        """The results of all on the main process, {} on others."""
        return super().evaluate()


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None
) -> PanopticEvaluators:
    """Build the evaluators of TEST.EVALUATORS for a registered data set.

    Args:
        cfg: TEST.EVALUATORS, TEST.WRITE_PREDICTIONS, TEST.CONTACT_SHEET, OUTPUT_DIR are read.
        dataset_name: of the data set.
        output_folder: for results; None: "inference" in OUTPUT_DIR.

    Returns:
        evaluators that each do nothing if the model's output lacks what they evaluate.

    Raises:
        ConfigError: an unknown name in TEST.EVALUATORS.
    """
    folder = output_folder or f"{cfg.OUTPUT_DIR}/inference"
    built = []
    truth: TruthRecords | None = None
    for name in dict.fromkeys(cfg.TEST.EVALUATORS):
        check_known("name in TEST.EVALUATORS", name, EVALUATORS)
        evaluator: DatasetEvaluator
        if has_instances_alone(dataset_name):
            if name == "instance":
                evaluator = build_instances_json_evaluator(dataset_name, folder)
                built.append(IfGiven(evaluator, EVALUATORS[name], name))
            else:
                logger.info(
                    "Data set %r holds instances alone: no %s evaluation", dataset_name, name
                )
            continue
        if name != "panoptic" and truth is None:
            truth = TruthRecords(dataset_name)  # one reading of the JSON serves all
        if name == "panoptic":
            evaluator = PanopticEvaluator(
                dataset_name,
                folder,
                write_predictions=cfg.TEST.WRITE_PREDICTIONS,
                keep_predictions=cfg.TEST.CONTACT_SHEET,
            )
        elif name == "semantic":
            evaluator = PanopticSemSegEvaluator(
                dataset_name, folder, write_predictions=cfg.TEST.WRITE_PREDICTIONS, truth=truth
            )
        elif thing_ids(dataset_name):
            evaluator = PanopticInstanceEvaluator(dataset_name, folder, truth=truth)
        else:
            logger.info("Data set %r has no thing: no instance evaluation", dataset_name)
            continue
        built.append(IfGiven(evaluator, EVALUATORS[name], name))
    return PanopticEvaluators(built)
