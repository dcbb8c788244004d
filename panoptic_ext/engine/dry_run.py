"""--dry-run: run every part of a training once, before hours are spent on it."""

from __future__ import annotations

import logging
import tempfile
import time
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import EventStorage

from panoptic_ext.data import check_panoptic
from panoptic_ext.engine.precision import evaluation_precision
from panoptic_ext.engine.trainer import Trainer
from panoptic_ext.errors import DatasetError
from panoptic_ext.evaluation import RunEvaluator

__all__ = ["dry_run"]

logger = logging.getLogger(__name__)

_MAX_LOGGED_PROBLEMS = 20  # of each data set


def dry_run(cfg: CfgNode) -> dict[str, Any]:
    """Build data, model and optimizer, train one step, evaluate one image, leave no file behind.

    Args:
        cfg: a checked config; OUTPUT_DIR gets the log only.

    Returns:
        The summary that is logged: classes, parameters, images, iterations, losses, seconds.

    Raises:
        DatasetError: the JSON of a data set is wrong, or files are missing.
    """
    with tempfile.TemporaryDirectory(prefix="panoptic_ext-dry-run-") as folder:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR = folder
        cfg.TEST.CONTACT_SHEET = 0
        for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)):
            _check_data(name)
        summary = _describe(cfg)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)  # the folder is empty: nothing is moved
        summary.update(_train_one_step(trainer))
        if cfg.DATASETS.TEST:
            summary["seconds of one image in evaluation"] = _evaluate_one_image(cfg, trainer)
    if torch.cuda.is_available() and cfg.MODEL.DEVICE.startswith("cuda"):
        summary["GPU memory in MiB"] = torch.cuda.max_memory_allocated() >> 20
    logger.info("Dry run:\n%s", "\n".join(f"  {k}: {v}" for k, v in summary.items()))
    return summary


def _check_data(name: str) -> None:
    """Raise DatasetError if the JSON is wrong or files are missing; no image is opened."""
    problems = check_panoptic(name, pixels=False)
    for problem in problems[:_MAX_LOGGED_PROBLEMS]:
        logger.warning("%s: %s", name, problem)
    serious = [problem for problem in problems if not problem.warning]
    if serious:
        raise DatasetError(
            f"data set {name} has {len(serious)} problem{'s, the first' * (len(serious) > 1)}: "
            f"{serious[0]}. panoptic-ext data check lists all"
        )


def _describe(cfg: CfgNode) -> dict[str, Any]:
    summary: dict[str, Any] = {"model": cfg.MODEL.META_ARCHITECTURE, "device": cfg.MODEL.DEVICE}
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        summary[f"images of {name}"] = len(DatasetCatalog.get(name))
    metadata = MetadataCatalog.get((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)[0])
    isthing = metadata.get("isthing", ())
    summary["classes"] = f"{len(isthing)}, {sum(map(bool, isthing))} of them things"
    minutes, number = cfg.SOLVER.TIME_BUDGET, str(cfg.SOLVER.MAX_ITER)
    if minutes:
        number = f"as many as fit into {minutes:g} minutes,"
    summary["iterations"] = f"{number} with {cfg.SOLVER.IMS_PER_BATCH} images each"
    return summary


def _train_one_step(trainer: Trainer) -> dict[str, Any]:
    start = time.perf_counter()
    with EventStorage(0) as storage:
        trainer.run_step()
        losses = {k: round(v, 4) for k, (v, _) in storage.latest().items() if "loss" in k}
    trained = [(n, p) for n, p in trainer.model.named_parameters() if p.requires_grad]
    ungraded = [name for name, parameter in trained if parameter.grad is None]
    if ungraded:
        logger.warning("%d parameters got no gradient, e.g. %s", len(ungraded), ungraded[0])
    return {
        "trainable parameters": f"{sum(parameter.numel() for _, parameter in trained):,}",
        "losses of the first step": losses,
        "seconds of the first step": round(time.perf_counter() - start, 2),
    }


def _evaluate_one_image(cfg: CfgNode, trainer: Trainer) -> float:
    name = cfg.DATASETS.TEST[0]
    evaluator = trainer.build_evaluator(cfg, name)
    evaluator.reset()
    batch = next(iter(trainer.build_test_loader(cfg, name)))
    trainer.model.eval()
    start = time.perf_counter()
    with torch.no_grad(), evaluation_precision(cfg).autocast():
        evaluator.process(batch, trainer.model(batch))
    if isinstance(evaluator, RunEvaluator):
        evaluator.wait()  # raises the errors of threads that compare images
    return round(time.perf_counter() - start, 2)
