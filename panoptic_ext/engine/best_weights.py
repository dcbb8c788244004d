"""The weights of the best evaluation: written in a training, and right where it is resumed.

A run is resumed at its last checkpoint. Evaluations behind it are forgotten, and where the device
is not deterministic they come out otherwise the next time. So the best weights as of the last
checkpoint are kept until the next one, beside those of a later evaluation.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from panoptic_ext.engine.best_metric import BestMetric
from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.engine.checkpoint.files import BEST_CHECKPOINT, FORMER_BEST, files_of_best
from panoptic_ext.engine.checkpoint.fingerprint import run_fingerprint
from panoptic_ext.engine.checkpoint.weight_files import read_weight_file
from panoptic_ext.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from panoptic_ext.engine.trainer import Trainer

__all__ = ["agree_with_history", "drop_former_best", "keep_best"]

logger = logging.getLogger(__name__)


def keep_best(trainer: Trainer, results: Mapping[str, Any] | None) -> None:
    """Take an evaluation into the trainer's `best`, and write its weights if they are the best.

    Args:
        trainer: in whose training the evaluation was.
        results: of the evaluation, on the first worker.

    Raises:
        ConfigError: there is no such metric; the checkpoint of the iteration has been written.
    """
    if trainer.best is None:
        return
    iteration = min(trainer.iter, trainer.max_iter - 1)
    latest = trainer.storage.latest_with_smoothing_hint()
    losses = {name: value for name, (value, _) in latest.items() if "loss" in name}
    try:
        is_best = trainer.best.add(iteration, results or {}, losses)
    except ConfigError:
        if trainer.iter < trainer.max_iter:
            trainer.checkpoint_hook().save()
        raise
    if is_best:
        average = trainer.average
        _keep_former_best(trainer.checkpointer)
        trainer.checkpointer.save_weights(
            BEST_CHECKPOINT,
            trainer.checkpointer.model.state_dict() if average is None else average.weights(),
            iteration=iteration,
            evaluation={k: float(v) for k, v in flatten_results_dict(results or {}).items()},
            panoptic_ext=run_fingerprint(trainer.cfg),
        )
    trainer.best.write()


def drop_former_best(checkpointer: Checkpointer) -> None:
    """After a checkpoint, which knows the evaluation of `model_best.pth`."""
    path = _path(checkpointer, FORMER_BEST)
    if checkpointer.save_to_disk and os.path.isfile(path):
        os.remove(path)


def agree_with_history(trainer: Trainer) -> None:
    """Have the files of a resumed run agree with the evaluations that it knows.

    All workers must call this after the checkpoint is loaded, or where there was none.
    """
    best = trainer.best
    if best is None:
        return
    checkpointer = trainer.checkpointer
    if checkpointer.save_to_disk:
        iteration = best.standing.iteration
        if iteration is not None and not _put_back(checkpointer, best, iteration):
            logger.warning(
                "The weights of the best evaluation, of iteration %d, are not there any more: the "
                "best evaluation is looked for anew",
                iteration,
            )
            best.evaluations = {}
        if best.standing.iteration is None:
            for path in files_of_best(checkpointer.save_dir):
                logger.info("%s is of evaluations behind the checkpoint: it is removed", path)
                os.remove(path)
        drop_former_best(checkpointer)
        if best.evaluations:
            best.write()
    # Folders of other machines may not have the files.
    best.evaluations = comm.all_gather(best.evaluations)[0]


def _put_back(checkpointer: Checkpointer, best: BestMetric, iteration: int) -> bool:
    """Whether `model_best.pth` is of an iteration, or could be made so."""
    path, former = (_path(checkpointer, name) for name in (BEST_CHECKPOINT, FORMER_BEST))
    before = _content(path).get("iteration")
    if before == iteration:
        return True
    if _content(former).get("iteration") == iteration:
        os.replace(former, path)
    else:
        content = _content(_path(checkpointer, f"model_{iteration:07d}"))
        if content.get("iteration") != iteration:
            return False
        checkpointer.save_weights(
            BEST_CHECKPOINT,
            content["model"],
            iteration=iteration,
            evaluation={best.name: best.standing.value},
            panoptic_ext=content.get("panoptic_ext", {}),
        )
    was = "was not there" if before is None else f"was of iteration {before}"
    logger.info(
        "%s %s; it has the weights of iteration %d, the best until the checkpoint",
        path,
        was,
        iteration,
    )
    return True


def _keep_former_best(checkpointer: Checkpointer) -> None:
    path, former = (_path(checkpointer, name) for name in (BEST_CHECKPOINT, FORMER_BEST))
    # One that is there is of the last checkpoint, and the other one of an evaluation behind it.
    if checkpointer.save_to_disk and os.path.isfile(path) and not os.path.isfile(former):
        os.replace(path, former)


def _content(path: str) -> dict[str, Any]:
    """Of a file of weights; empty if it is not there or cannot be read."""
    if not os.path.isfile(path):
        return {}
    try:
        return read_weight_file(path)
    except CheckpointError as error:
        logger.warning("%s", error)
        return {}


def _path(checkpointer: Checkpointer, name: str) -> str:
    return os.path.join(checkpointer.save_dir, f"{name}.pth")
