"""Evaluate a model on the data sets of a config: results, tables, JSON, contact sheet."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import perf_counter
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_on_dataset,
    print_csv_format,
)
from detectron2.utils import comm
from detectron2.utils.logger import log_first_n
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from panoptic_ext import evaluation
from panoptic_ext.atomic import write_atomic
from panoptic_ext.config.image_values import side_of_windows
from panoptic_ext.data.datasets.parsed import parsed_once
from panoptic_ext.engine.checkpoint.rng import preserved_rng
from panoptic_ext.engine.distributed import share_buffers
from panoptic_ext.engine.earlier_results import (
    RESULTS_FILE,
    evaluation_settings,
    keep_earlier_results,
    write_settings,
)
from panoptic_ext.engine.memory_errors import explained_memory_errors
from panoptic_ext.engine.precision import evaluation_precision
from panoptic_ext.engine.system_errors import explain_system_error
from panoptic_ext.errors import MemoryNeededError
from panoptic_ext.evaluation import PanopticEvaluator, PanopticEvaluators, RunEvaluator
from panoptic_ext.evaluation.build import result_folder
from panoptic_ext.interruption import STOPPING, Interrupted, StopRequest, stoppable
from panoptic_ext.modeling.meta_arch.semantic_windows import in_windows

__all__ = ["build_evaluator", "evaluate"]

logger = logging.getLogger(__name__)

_NUM_SILENT_IMAGES = 10  # of Detectron2's inference_on_dataset
_NO_AUGMENTATION = (
    "TEST.AUG.ENABLED is True, but test-time augmentation is not implemented: each image is "
    "evaluated once, at its test size and unflipped, so results are those without it. "
    "TEST.AUG.ENABLED False silences this"
)


def build_evaluator(cfg: CfgNode, dataset_name: str) -> PanopticEvaluators:
    """Build the evaluators of TEST.EVALUATORS for a data set; they write into its result folder."""
    return evaluation.build_evaluator(cfg, dataset_name, result_folder(cfg, dataset_name))


def evaluate(
    trainer: Any, cfg: CfgNode, model: nn.Module, evaluators: Any = None
) -> OrderedDict[str, Any] | dict[str, Any]:
    """Evaluate a model on the data sets of DATASETS.TEST.

    The state of the random generators is the same afterwards. Images are evaluated once, without
    test-time augmentation; if TEST.AUG asks for it, a warning is logged. Earlier results with other
    weights or settings are kept: see `keep_earlier_results`.

    Args:
        trainer: class with `build_test_loader` and `build_evaluator`.
        cfg: the config.
        model: the model with its weights loaded, wrapped in DistributedDataParallel or not.
        evaluators: one per data set; None builds them.

    Returns:
        Data set -> its results, or the results alone if there is one data set; empty on all workers
        but the first.
    """
    if isinstance(evaluators, DatasetEvaluator):
        evaluators = [evaluators]
    if isinstance(model, DistributedDataParallel):
        model = model.module
    # The statistics of batch norms differ between workers, and a checkpoint holds the first one's.
    # With these on all workers the results are those of the checkpoint, also after --resume.
    share_buffers(model)
    if cfg.TEST.AUG.ENABLED and cfg.DATASETS.TEST and comm.is_main_process():
        log_first_n(logging.WARNING, _NO_AUGMENTATION, name=__name__, key="message")
    results: OrderedDict[str, Any] = OrderedDict()
    with preserved_rng():
        for i, name in enumerate(cfg.DATASETS.TEST):
            settings: dict[str, Any] = {}
            if comm.is_main_process():
                settings = evaluation_settings(cfg, model)
                keep_earlier_results(result_folder(cfg, name), settings)
            comm.synchronize()  # no worker may write into the folder before it has been moved
            # The loader, the evaluators and the contact sheet parse the data set's JSON once.
            with parsed_once():
                data = trainer.build_test_loader(cfg, name)
                evaluator = evaluators[i] if evaluators else trainer.build_evaluator(cfg, name)
                with evaluation_precision(cfg).autocast():
                    windowed = in_windows(model, side_of_windows(cfg))
                    results[name] = _run(windowed, data, evaluator)
                if comm.is_main_process():
                    _publish(cfg, name, results[name], evaluator, settings)
    if len(results) == 1:
        return next(iter(results.values()))
    return results


class _StoppableLoader:
    """A loader that ends early if this worker was asked to stop."""

    def __init__(self, loader: Any, stop: StopRequest) -> None:
        self._loader = loader
        self._stop = stop
        self.num_evaluated = 0

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        began = logged = perf_counter()
        for batch in self._loader:
            yield batch
            self.num_evaluated += 1
            if self._stop:
                return
            # Detectron2's lines about progress begin after these images.
            if self.num_evaluated <= _NUM_SILENT_IMAGES and perf_counter() - logged > 5:
                logged = perf_counter()
                num_left = len(self) - self.num_evaluated
                seconds = round((logged - began) / self.num_evaluated * num_left)
                left = timedelta(seconds=seconds)
                logger.info(
                    "Evaluated %d of %d images, about %s left", self.num_evaluated, len(self), left
                )


@contextmanager
def _memory_for(inputs: list[Any]) -> Iterator[None]:
    """Name the batch's largest image in an error about memory that is raised in the block."""
    images = [i for i in inputs if isinstance(i, dict)] or [{}]  # a loader may give anything
    largest = max(images, key=lambda i: i.get("height", 0) * i.get("width", 0))
    try:
        with explained_memory_errors(largest.get("height", 0), largest.get("width", 0)):
            yield
    except MemoryNeededError as error:
        raise MemoryNeededError(f"{largest.get('file_name', 'evaluation')}: {error}") from error


class _ModelNamingImages(nn.Module):
    """A model whose errors about memory name the image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, inputs: list[dict[str, Any]]) -> Any:
        with _memory_for(inputs):
            return self.model(inputs)


class _StoppableEvaluator(DatasetEvaluator):
    """An evaluator that raises Interrupted instead of giving results if a worker was stopped."""

    def __init__(self, evaluator: Any, data: _StoppableLoader, stop: StopRequest) -> None:
        self._evaluator, self._data, self._stop = evaluator, data, stop

    def reset(self) -> None:
        self._evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        with _memory_for(inputs):
            self._evaluator.process(inputs, outputs)

    def evaluate(self) -> Any:
        # All workers end together. If one ended alone, the others would wait for its results.
        workers = comm.all_gather((self._stop.signum, self._data.num_evaluated, len(self._data)))
        signals = [signum for signum, _, _ in workers if signum is not None]
        if signals:
            _, evaluated, images = zip(*workers, strict=True)
            raise Interrupted(
                signals[0],
                f"stopped after evaluating {sum(evaluated)} of {sum(images)} images; there are "
                "no results, and the same command evaluates from the first image",
            )
        return self._evaluator.evaluate()


def _run(model: nn.Module, data: Any, evaluator: Any) -> dict[str, Any]:
    if isinstance(evaluator, (list, tuple)):
        evaluator = DatasetEvaluators(evaluator)
    announce = STOPPING if comm.is_main_process() else ""
    try:
        with stoppable(announce) as stop:
            images = _StoppableLoader(data, stop)
            return inference_on_dataset(
                _ModelNamingImages(model), images, _StoppableEvaluator(evaluator, images, stop)
            )
    except (OSError, RuntimeError) as error:
        explained = explain_system_error(error)
        if explained is None:
            raise
        raise explained from error


def _publish(
    cfg: CfgNode, name: str, results: dict[str, Any], evaluator: Any, settings: dict[str, Any]
) -> None:
    folder = result_folder(cfg, name)
    os.makedirs(folder, exist_ok=True)
    logger.info("Evaluation of %s:", name)
    print_csv_format(results)
    content = json.dumps(_finite(results), indent=1).encode()
    write_settings(folder, settings)
    write_atomic(os.path.join(folder, RESULTS_FILE), lambda stream: stream.write(content))
    number = cfg.TEST.CONTACT_SHEET
    panoptic = evaluator.panoptic if isinstance(evaluator, RunEvaluator) else None
    if number > 0 and panoptic is not None and panoptic.keep_predictions:
        _write_contact_sheet(panoptic, name, os.path.join(folder, "contact_sheet.png"), number)


def _write_contact_sheet(evaluator: PanopticEvaluator, name: str, path: str, number: int) -> None:
    from panoptic_ext.visualization.contact_sheet import pq_contact_sheet

    try:
        pq_contact_sheet(evaluator, name, path, number)
    except Exception:  # a picture that fails must not end a training
        logger.exception("The contact sheet %s could not be drawn", path)
        return
    logger.info("Contact sheet of worst and best images: %s", path)


def _finite(value: Any) -> Any:
    """Values that JSON can hold: infinite numbers and NaN become null."""
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    number = float(value)
    return number if math.isfinite(number) else None
