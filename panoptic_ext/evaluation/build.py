"""The evaluators of a run, from its config."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm

from panoptic_ext.data import has_instances_alone, thing_ids
from panoptic_ext.errors import check_known
from panoptic_ext.evaluation.instance_evaluation import PanopticInstanceEvaluator
from panoptic_ext.evaluation.instances_json_evaluation import build_instances_json_evaluator
from panoptic_ext.evaluation.panoptic_evaluation import PanopticEvaluator
from panoptic_ext.evaluation.run_evaluator import RunEvaluator
from panoptic_ext.evaluation.semantic_evaluation import PanopticSemSegEvaluator
from panoptic_ext.evaluation.truth import Truth

__all__ = [
    "EVALUATORS",
    "OptionalEvaluator",
    "PanopticEvaluators",
    "build_evaluator",
    "result_folder",
]

logger = logging.getLogger(__name__)

EVALUATORS = {"panoptic": "panoptic_seg", "semantic": "sem_seg", "instance": "instances"}
"""Names for TEST.EVALUATORS, and the key of the model's output that each evaluates."""


def result_folder(cfg: CfgNode, dataset_name: str = "") -> str:
    """The folder of results: OUTPUT_DIR/inference, or the data set's folder in it."""
    return os.path.join(cfg.OUTPUT_DIR, "inference", *([dataset_name] if dataset_name else []))


class OptionalEvaluator(RunEvaluator):
    """Runs an evaluator only on outputs that have its key; logs once if no output has it."""

    def __init__(self, evaluator: DatasetEvaluator, key: str, name: str):
        """
        Args:
            evaluator: reads `key` of the model's output.
            key: a key of the model's output dicts.
            name: as in TEST.EVALUATORS.
        """
        self.evaluator = evaluator
        self._key, self._name = key, name
        self._has_outputs = False

    @property
    def panoptic(self) -> PanopticEvaluator | None:
        """The PanopticEvaluator of the wrapped evaluator, or None."""
        return self.evaluator.panoptic if isinstance(self.evaluator, RunEvaluator) else None

    def wait(self) -> None:
        """Wait for the wrapped evaluator."""
        if isinstance(self.evaluator, RunEvaluator):
            self.evaluator.wait()

    def reset(self) -> None:
        """Forget all predictions."""
        self._has_outputs = False
        self.evaluator.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Pass on the images whose output has the key."""
        pairs = [
            (given, output)
            for given, output in zip(inputs, outputs, strict=True)
            if output.get(self._key) is not None
        ]
        if pairs:
            self._has_outputs = True
            self.evaluator.process([p[0] for p in pairs], [p[1] for p in pairs])

    def evaluate(self) -> dict | None:
        """The evaluator's result; {} if no worker's model gave the key."""
        # All workers decide alike, since `evaluate` of the wrapped evaluator synchronises them.
        if any(comm.all_gather(self._has_outputs)):
            return self.evaluator.evaluate()
        logger.info(
            "TEST.EVALUATORS has %r, but the model gives no %r: skipped", self._name, self._key
        )
        return {}


class PanopticEvaluators(RunEvaluator, DatasetEvaluators):
    """The evaluators of `build_evaluator`."""

    def __init__(self, evaluators: Sequence[OptionalEvaluator]):
        super().__init__(evaluators)
        self.evaluators = tuple(evaluators)

    @property
    def panoptic(self) -> PanopticEvaluator | None:
        """The PanopticEvaluator among them (per_image, worst, best, summary), or None."""
        return next((e.panoptic for e in self.evaluators if e.panoptic is not None), None)

    def wait(self) -> None:
        """Wait until all predictions so far are compared; see `PanopticEvaluator.wait`."""
        for evaluator in self.evaluators:
            evaluator.wait()

    def evaluate(self) -> OrderedDict:
        """The results of all on the main process, {} on others."""
        return super().evaluate()


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None
) -> PanopticEvaluators:
    """Build the evaluators of TEST.EVALUATORS for a registered data set.

    Args:
        cfg: TEST.EVALUATORS, TEST.WRITE_PREDICTIONS, TEST.CONTACT_SHEET,
            TEST.BOUNDARY_PQ, OUTPUT_DIR are read.
        dataset_name: of the data set.
        output_folder: for results; None: `result_folder` of all data sets.

    Returns:
        evaluators that each do nothing if the model's output lacks what they evaluate.

    Raises:
        ConfigError: an unknown name in TEST.EVALUATORS.
    """
    folder = output_folder or result_folder(cfg)
    has_instances = has_instances_alone(dataset_name)
    # All evaluators share one Truth, so that the JSON is read once.
    truth = None if has_instances else Truth(dataset_name)
    built = []
    for name in dict.fromkeys(cfg.TEST.EVALUATORS):
        check_known("name in TEST.EVALUATORS", name, EVALUATORS)
        if truth is None:
            evaluator = _evaluator_of_instances(name, dataset_name, folder)
        else:
            evaluator = _evaluator_of_panoptic(name, cfg, folder, truth)
        if evaluator is not None:
            built.append(OptionalEvaluator(evaluator, EVALUATORS[name], name))
    return PanopticEvaluators(built)


def _evaluator_of_instances(name: str, dataset_name: str, folder: str) -> DatasetEvaluator | None:
    """An evaluator for a data set of instances alone; None if it has no truth for `name`."""
    if name == "instance":
        return build_instances_json_evaluator(dataset_name, folder)
    logger.info("Data set %r holds instances alone: no %s evaluation", dataset_name, name)
    return None


def _evaluator_of_panoptic(
    name: str, cfg: CfgNode, folder: str, truth: Truth
) -> DatasetEvaluator | None:
    """An evaluator for a panoptic data set; None for "instance" if the data set has no thing."""
    write = cfg.TEST.WRITE_PREDICTIONS
    if name == "panoptic":
        return PanopticEvaluator(
            truth.dataset_name,
            folder,
            write_predictions=write,
            keep_predictions=cfg.TEST.CONTACT_SHEET,
            boundary=cfg.TEST.BOUNDARY_PQ,
            truth=truth,
        )
    if name == "semantic":
        return PanopticSemSegEvaluator(
            truth.dataset_name, folder, write_predictions=write, truth=truth
        )
    if thing_ids(truth.dataset_name):
        return PanopticInstanceEvaluator(truth.dataset_name, folder, truth=truth)
    logger.info("Data set %r has no thing: no instance evaluation", truth.dataset_name)
    return None
