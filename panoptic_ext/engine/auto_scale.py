"""SOLVER.AUTO_SCALE: learning rate and length of a training for another batch or data set.

Sources: the learning rate of SGD is proportional to the batch (Goyal et al. 2017,
arXiv:1706.02677), that of Adam to its square root (Malladi et al. 2022, arXiv:2205.10287; their
rule also changes the betas, which stay here, as is usual).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer

from panoptic_ext.config.left_out import get_key, set_key
from panoptic_ext.config.values import Setting
from panoptic_ext.engine.loader import train_records
from panoptic_ext.engine.samplers import num_drawn

__all__ = [
    "auto_scaled",
    "scaled_solver",
    "scaled_to_workers",
    "set_reference_batch",
]

logger = logging.getLogger(__name__)

# Keys in iterations; 0 stays.
_ITERATIONS = (
    "SOLVER.MAX_ITER",
    "SOLVER.WARMUP_ITERS",
    "SOLVER.BACKBONE_WARMUP_ITERS",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD",
)
_RATES = {"BASE_LR", "BASE_LR_END"}  # only Detectron2 main has the end of WarmupCosineLR's curve
_DEFAULT_BATCH = 16  # of Detectron2, to which its BASE_LR belongs


def set_reference_batch(cfg: CfgNode, settings: Sequence[Setting]) -> None:
    """Set REFERENCE_BATCH_SIZE, in place, to the batch of the recipe, if it is 0.

    The recipe is what the last file that sets BASE_LR or MAX_ITER says, with its bases, and what
    later bases say: a base that changes the batch alone has been tuned with it. The user's own
    file, unless it sets one of these keys, and the command line change the recipe's batch.

    Args:
        cfg: the merged config, not frozen.
        settings: of which it was merged, in their order.
    """
    solver = cfg.SOLVER
    if solver.AUTO_SCALE.REFERENCE_BATCH_SIZE or not _is_wanted(solver):
        return
    files = [s.file for s in settings if s.key in ("SOLVER.BASE_LR", "SOLVER.MAX_ITER") and s.file]
    of_recipe = [s.in_base or (bool(files) and s.file == files[-1]) for s in settings]
    end = max((i for i, belongs in enumerate(of_recipe) if belongs), default=-1)
    batches = [s.value for s in settings[: end + 1] if s.key == "SOLVER.IMS_PER_BATCH"]
    solver.AUTO_SCALE.REFERENCE_BATCH_SIZE = int(batches[-1]) if batches else _DEFAULT_BATCH


def auto_scaled(cfg: CfgNode) -> CfgNode:
    """The config with SOLVER.AUTO_SCALE applied; what changes is one line in the log.

    A config that has been scaled is not scaled again: the references become its own batch and its
    own number of images.

    Args:
        cfg: a checked config whose data sets are registered.

    Raises:
        DatasetError: the training set, whose images are counted, cannot be read.
    """
    solver = cfg.SOLVER
    if not solver.AUTO_SCALE.ENABLED:
        return cfg
    scale = solver.AUTO_SCALE
    needs_images = scale.REFERENCE_IMAGES > 0 or scale.EPOCHS > 0
    return scaled_solver(cfg, num_drawn(cfg, len(train_records(cfg))) if needs_images else None)


def scaled_to_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
    """Detectron2's scaling by SOLVER.REFERENCE_WORLD_SIZE, which AUTO_SCALE must not repeat."""
    scaled = DefaultTrainer.auto_scale_workers(cfg, num_workers)
    if scaled.SOLVER.IMS_PER_BATCH != cfg.SOLVER.IMS_PER_BATCH:
        frozen = scaled.is_frozen()
        scaled.defrost()
        scaled.SOLVER.AUTO_SCALE.REFERENCE_BATCH_SIZE = scaled.SOLVER.IMS_PER_BATCH
        if frozen:
            scaled.freeze()
    return scaled


def scaled_solver(cfg: CfgNode, num_images: int | None) -> CfgNode:
    """See `auto_scaled`.

    Args:
        cfg: a config; it is not changed.
        num_images: that are drawn of the training set; None if no key depends on it.
    """
    scaled = cfg.clone()
    scaled.defrost()
    solver, scale = scaled.SOLVER, scaled.SOLVER.AUTO_SCALE
    batch, reference = solver.IMS_PER_BATCH, scale.REFERENCE_BATCH_SIZE or solver.IMS_PER_BATCH
    length = reference / batch
    if num_images and scale.EPOCHS:
        length = max(1, round(scale.EPOCHS * num_images / batch)) / solver.MAX_ITER
    elif num_images and scale.REFERENCE_IMAGES:
        length *= num_images / scale.REFERENCE_IMAGES
    power = 1.0 if solver.OPTIMIZER.upper() == "SGD" else 0.5
    if batch != reference:
        for key in _RATES & solver.keys():
            solver[key] = cfg.SOLVER[key] * (batch / reference) ** power
    if length != 1:
        _scale_iterations(scaled, length)
    if num_images and scale.REFERENCE_IMAGES:
        scale.REFERENCE_IMAGES = num_images
    scale.REFERENCE_BATCH_SIZE = batch
    if batch != reference or length != 1:
        _explain(cfg, scaled, num_images)
    if cfg.is_frozen():
        scaled.freeze()
    return scaled


def _is_wanted(solver: CfgNode) -> bool:
    return solver.AUTO_SCALE.ENABLED or solver.AUTO_BATCH_SIZE


def _scale_iterations(cfg: CfgNode, factor: float) -> None:
    for key in _ITERATIONS:
        value = get_key(cfg, key)
        set_key(cfg, key, max(1, round(value * factor)) if value else value)
    steps = [max(1, round(step * factor)) for step in cfg.SOLVER.STEPS]
    cfg.SOLVER.STEPS = type(cfg.SOLVER.STEPS)(dict.fromkeys(steps))  # they must increase
    eomt = cfg.MODEL.EOMT
    eomt.ANNEALING_FIRST = [round(at * factor) for at in eomt.ANNEALING_FIRST]
    if not isinstance(eomt.ANNEALING, str):
        eomt.ANNEALING = [[round(at * factor) for at in pair] for pair in eomt.ANNEALING]


def _explain(before: CfgNode, after: CfgNode, num_images: int | None) -> None:
    old, new = before.SOLVER, after.SOLVER
    reasons = []
    if num_images:
        reasons.append(f"{num_images} images")
        if old.AUTO_SCALE.EPOCHS:
            reasons[-1] += f", {old.AUTO_SCALE.EPOCHS:g} passes"
        elif num_images != old.AUTO_SCALE.REFERENCE_IMAGES:
            reasons[-1] += f" instead of {old.AUTO_SCALE.REFERENCE_IMAGES}"
    reference = old.AUTO_SCALE.REFERENCE_BATCH_SIZE or old.IMS_PER_BATCH
    batch = f"batch {new.IMS_PER_BATCH}"
    reasons.append(batch if reference == new.IMS_PER_BATCH else f"{batch} instead of {reference}")
    changes = []
    if not math.isclose(old.BASE_LR, new.BASE_LR):
        rule = "proportional to the batch" if new.OPTIMIZER.upper() == "SGD" else "by its root"
        changes.append(f"BASE_LR {old.BASE_LR:g} becomes {new.BASE_LR:.4g} ({rule})")
    if old.MAX_ITER != new.MAX_ITER:
        changes.append(
            f"MAX_ITER {old.MAX_ITER} becomes {new.MAX_ITER}, and warm-up, steps and periods "
            "change with it"
        )
    logger.info("SOLVER.AUTO_SCALE: %s: %s", ", ".join(reasons), ", ".join(changes) or "no change")
