"""The best evaluation of a training: its weights are kept, and a training that stalls is ended.

A run's evaluations are a list of (iteration, value). All else follows from it: the best one, and
how many evaluations in a row have brought no improvement. A checkpoint holds the evaluations before
it; the file `best_metric.json`, which is written after each, has the one behind the checkpoint.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from panoptic_ext.atomic import write_atomic
from panoptic_ext.engine.checkpoint.files import BEST_CHECKPOINT, BEST_METRIC_FILE
from panoptic_ext.engine.checkpoint.parts import PartError, check_integer, check_kind
from panoptic_ext.errors import NOT_JSON, ConfigError, quoted, unknown
from panoptic_ext.evaluation.metric_names import MAIN_METRICS, metric_names

__all__ = [
    "BestMetric",
    "Standing",
    "build_best_metric",
    "check_best_metric_keys",
    "check_state",
    "evaluator_metrics",
    "standing",
]

logger = logging.getLogger(__name__)

_KEY = "TEST.BEST_METRIC"
_WORDS_FOR_LOWER = ("loss", "error")
_OF_A_CLASS = re.compile(r"/(?:IoU|ACC|AP)-.*")  # a class may be called "glossy"


class Standing(NamedTuple):
    """What a list of evaluations comes to.

    Attributes:
        iteration: of the best evaluation, the first of equal ones; None if no value is a number.
        value: of that evaluation.
        waited: evaluations since the last one that improved on the one before which did so by more
            than the least difference.
    """

    iteration: int | None
    value: float
    waited: int


def standing(
    evaluations: Iterable[tuple[int, float]], *, lower: bool = False, min_delta: float = 0.0
) -> Standing:
    """Find the best evaluation, and how many since then brought no improvement.

    Args:
        evaluations: (iteration, value) in their order; a value that is NaN is the worst.
        lower: whether a lower value is better.
        min_delta: an improvement is more than this.
    """
    sign = -1.0 if lower else 1.0
    iteration, best, reference, waited = None, -math.inf, -math.inf, 0
    for number, value in evaluations:
        score = -math.inf if math.isnan(value) else sign * value
        if score > best:
            iteration, best = number, score
        improved = score > reference + min_delta
        reference, waited = (score, 0) if improved else (reference, waited + 1)
    return Standing(iteration, sign * best, waited)


class BestMetric:
    """Evaluations of a training, by one metric.

    Attributes:
        name: of the metric, as metrics.json has it.
        evaluations: iteration -> value.
    """

    def __init__(
        self,
        name: str,
        *,
        lower: bool | None = None,
        patience: int = 0,
        min_delta: float = 0.0,
        folder: str = "",
        beside: Collection[str] = (),
    ) -> None:
        """
        Args:
            name: such as "panoptic_seg/PQ".
            lower: whether a lower value is better; None: if the name has "loss" or "error" in it.
            patience: evaluations without improvement after which the training ends; 0: never.
            min_delta: an improvement is more than this.
            folder: of the run, for `best_metric.json`; "" writes no file.
            beside: names of the evaluator that gives the metric. Where all values that it gives are
                NaN, because nothing was predicted, the metric is NaN even if it is not among them.
        """
        self.name = name
        own = _OF_A_CLASS.sub("", name).lower()
        words = any(word in own for word in _WORDS_FOR_LOWER)
        self._lower = words if lower is None else lower
        self._patience = patience
        self._min_delta = min_delta
        self._path = os.path.join(folder, BEST_METRIC_FILE) if folder else ""
        self._beside = beside
        self.evaluations: dict[int, float] = {}

    @property
    def standing(self) -> Standing:
        """The best evaluation so far."""
        return standing(
            sorted(self.evaluations.items()), lower=self._lower, min_delta=self._min_delta
        )

    @property
    def is_stalled(self) -> bool:
        """Whether so many evaluations have brought no improvement that the training ends."""
        return 0 < self._patience <= self.standing.waited

    def has(self, iteration: int) -> bool:
        """Whether the weights after an iteration have been evaluated."""
        return iteration in self.evaluations

    def add(self, iteration: int, results: Mapping[str, Any], others: Mapping[str, float]) -> bool:
        """Take in an evaluation; all workers must call this.

        Args:
            iteration: whose weights were evaluated.
            results: of the evaluation, nested; empty on all workers but the first.
            others: further values by name, such as losses of the training.

        Returns:
            Whether it is the best so far; equal on all workers.

        Raises:
            ConfigError: there is no such metric; on all workers.
        """
        value, problem = self._value(results, others)
        # The first worker alone has the results, but all go on or stop.
        value, problem = comm.all_gather((value, problem))[0]
        if problem:
            raise ConfigError(problem)
        self.evaluations[iteration] = value
        best = self.standing
        logger.info(
            "%s is %.6g after iteration %d; the best is %.6g after iteration %s",
            self.name,
            value,
            iteration,
            best.value,
            best.iteration,
        )
        return best.iteration == iteration

    def why(self) -> str:
        """Why a training ends that `is_stalled`, and where its best weights are."""
        best = self.standing
        evaluations = "1 evaluation"
        if best.waited != 1:
            evaluations = f"{best.waited} evaluations in a row"
        return (
            f"{evaluations} brought {self.name} no improvement of more than {self._min_delta:g} "
            f"(TEST.EARLY_STOPPING). The best is {best.value:.6g} after iteration "
            f"{best.iteration}, in {BEST_CHECKPOINT}.pth; model_final.pth has the last"
        )

    def state_dict(self) -> dict[str, Any]:
        """The evaluations, as plain values."""
        return {"metric": self.name, "evaluations": [list(i) for i in self.evaluations.items()]}

    def load_state_dict(self, state: Mapping[str, Any] | None, iteration: int) -> None:
        """Go on after a checkpoint.

        Args:
            state: of `state_dict`, from the checkpoint; None if its run had no metric.
            iteration: of the checkpoint; evaluations after it are forgotten.
        """
        self.evaluations = {}
        for source in (state, self._read()):
            if source is None:
                continue
            if source["metric"] != self.name:
                logger.warning(
                    "%s was %s and is %s: the best evaluation is looked for anew",
                    _KEY,
                    source["metric"],
                    self.name,
                )
                continue
            self.evaluations.update((i, v) for i, v in source["evaluations"] if i <= iteration)

    def _value(self, results: Mapping[str, Any], others: Mapping[str, float]) -> tuple[float, str]:
        if not comm.is_main_process():
            return math.nan, ""
        values = {**others, **flatten_results_dict(results)}
        if self.name in values:
            return float(values[self.name]), ""
        given = [values[name] for name in self._beside if name in values]
        if given and all(map(math.isnan, given)):
            return math.nan, ""
        mend = "the training so far is in the last checkpoint: name one of them and add --resume"
        return math.nan, unknown(_KEY, self.name, values, mend=mend)

    def write(self) -> None:
        """Write the evaluations into `best_metric.json`, on the first worker.

        After the weights of the best one: if a run is killed in between, the resumed one evaluates
        again.
        """
        if self._path and comm.is_main_process():
            best = self.standing
            content = {
                "metric": self.name,
                "best": {"iteration": best.iteration, "value": best.value},
                "evaluations": sorted(self.evaluations.items()),
            }
            text = json.dumps(content, indent=1).encode()
            write_atomic(self._path, lambda stream: stream.write(text))

    def _read(self) -> dict[str, Any] | None:
        """The content of the file; None if there is none, or if it cannot be used."""
        try:
            with open(self._path, encoding="utf-8") as stream:
                content = json.load(stream)
            check_state(BEST_METRIC_FILE, content)
        except OSError:
            return None
        except (*NOT_JSON, PartError) as error:
            logger.warning("%s is left aside: %s", self._path, error)
            return None
        return content


def check_state(part: str, state: Any) -> None:
    """Raise PartError unless `state` has the structure of `BestMetric.state_dict`."""
    if state is None:
        return
    check_kind(part, state, dict)
    check_kind(f"{part}.metric", state.get("metric"), str)
    check_kind(f"{part}.evaluations", state.get("evaluations"), list)
    for pair in state["evaluations"]:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise PartError(f"{part}.evaluations", f"has {quoted(pair)}, expected pairs")
        check_integer(f"{part}.evaluations", pair[0])
        if not isinstance(pair[1], (int, float)):
            raise PartError(f"{part}.evaluations", f"has {quoted(pair)}, expected numbers")


def build_best_metric(cfg: CfgNode, *, own_evaluators: bool = True) -> BestMetric | None:
    """The metric of TEST.BEST_METRIC, or None where that is "".

    Args:
        cfg: a config whose data sets are registered.
        own_evaluators: whether the evaluators are those of panoptic_ext, whose names are known.

    Raises:
        ConfigError: see `check_best_metric_keys`; or the evaluators give no such metric.
        DatasetError: the classes of a data set, by which metrics are named, cannot be read.
    """
    check_best_metric_keys(cfg)
    test = cfg.TEST
    if not test.BEST_METRIC:
        return None
    beside = evaluator_metrics(cfg) if own_evaluators else ()
    return BestMetric(
        test.BEST_METRIC,
        lower=test.BEST_METRIC_LOWER,
        patience=test.EARLY_STOPPING.PATIENCE,
        min_delta=test.EARLY_STOPPING.MIN_DELTA,
        folder=cfg.OUTPUT_DIR,
        beside=beside,
    )


def evaluator_metrics(cfg: CfgNode) -> tuple[str, ...]:
    """The metrics of the evaluator of panoptic_ext that gives TEST.BEST_METRIC.

    Returns:
        Their names; empty for a loss of the training, and where only the results can tell.

    Raises:
        ConfigError: no evaluator gives such a metric.
    """
    name, datasets = cfg.TEST.BEST_METRIC, cfg.DATASETS.TEST
    known: list[str] = []
    open_blocks: set[str] = set()  # in which there may be more than is known
    for dataset in datasets:
        for evaluator in cfg.TEST.EVALUATORS:
            prefix = f"{dataset}/" if len(datasets) > 1 else ""
            names = metric_names(evaluator, dataset)
            main = MAIN_METRICS.get(evaluator, ())
            if names is None:
                open_blocks |= {prefix + metric.partition("/")[0] for metric in main}
            prefixed = tuple(prefix + metric for metric in (main if names is None else names))
            if name in prefixed:
                return prefixed
            known += prefixed
    block = name.rpartition("/")[0]
    is_of_known = block in {metric.rpartition("/")[0] for metric in known}
    if any(name.startswith(f"{b}/") for b in open_blocks) or ("loss" in name and not is_of_known):
        return ()
    mend = "losses of the training are metrics, too"
    raise ConfigError(unknown(_KEY, name, known, mend=mend))


def check_best_metric_keys(cfg: CfgNode) -> None:
    """Raise ConfigError if the keys of the best metric and of early stopping contradict others."""
    test = cfg.TEST
    if test.BEST_METRIC and not cfg.DATASETS.TEST:
        raise ConfigError(
            f"{_KEY} is {test.BEST_METRIC}, but DATASETS.TEST is empty: name a data set to "
            "evaluate on"
        )
    if not test.EARLY_STOPPING.PATIENCE:
        return
    if not test.BEST_METRIC:
        raise ConfigError(
            f"TEST.EARLY_STOPPING.PATIENCE is {test.EARLY_STOPPING.PATIENCE}, but {_KEY} is "
            "empty: name the metric that has to improve, such as panoptic_seg/PQ"
        )
    if not test.EVAL_PERIOD:
        raise ConfigError(
            f"TEST.EARLY_STOPPING.PATIENCE is {test.EARLY_STOPPING.PATIENCE}, but TEST.EVAL_PERIOD "
            "is 0: set it to the iterations between two evaluations"
        )
