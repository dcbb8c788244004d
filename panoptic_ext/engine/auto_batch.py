"""SOLVER.AUTO_BATCH_SIZE: the largest batch with which a training step fits into a GPU's memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from panoptic_ext.config.plain_yaml import load_plain_yaml
from panoptic_ext.engine.build_model import build_model
from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.engine.checkpoint.rng import preserved_rng
from panoptic_ext.engine.loader import build_train_loader
from panoptic_ext.engine.optimizer import build_optimizer
from panoptic_ext.engine.precision import build_grad_scaler, training_precision
from panoptic_ext.engine.run_config import without_pretrained
from panoptic_ext.engine.train_step import TrainStep
from panoptic_ext.errors import ConfigError

__all__ = ["TrialSteps", "check_batch_is_known", "largest_fitting", "with_fitting_batch"]

logger = logging.getLogger(__name__)

_FREE_SHARE = 0.1  # of the memory: images differ, and allocations leave gaps
_MAX_BATCH = 256  # images of a worker, of each part
_NUM_CANDIDATES = 16  # samples of which the largest is tried
_NUM_TRIAL_STEPS = 2  # the second one also holds the optimizer's state


def with_fitting_batch(cfg: CfgNode, *, resume: bool = False) -> CfgNode:
    """The config with the largest batch that fits, if SOLVER.AUTO_BATCH_SIZE asks for it.

    The batch that was given becomes AUTO_SCALE's reference, and AUTO_SCALE is enabled. With
    SOLVER.ACCUMULATION_STEPS the largest part that fits is found, and the batch is that many parts.

    Args:
        cfg: a checked config whose data sets are registered.
        resume: a run of OUTPUT_DIR that has a checkpoint goes on with its own batch.

    Raises:
        ConfigError: the device is no GPU, or one image does not fit.
    """
    if not cfg.SOLVER.AUTO_BATCH_SIZE:
        return cfg
    batch = None
    if resume:
        # The first worker decides for all, which may see other folders on other machines.
        batch = comm.all_gather(_batch_of_run(cfg) if comm.is_main_process() else None)[0]
    if batch is None:
        if not cfg.MODEL.DEVICE.startswith("cuda"):
            raise ConfigError(
                f"SOLVER.AUTO_BATCH_SIZE fits the batch into a GPU's memory, but MODEL.DEVICE is "
                f"{cfg.MODEL.DEVICE}, where a larger batch is hardly faster; give "
                "SOLVER.IMS_PER_BATCH"
            )
        batch = _fitting_batch(cfg)
    fitted = cfg.clone()
    fitted.defrost()
    scale = fitted.SOLVER.AUTO_SCALE
    scale.REFERENCE_BATCH_SIZE = scale.REFERENCE_BATCH_SIZE or cfg.SOLVER.IMS_PER_BATCH
    scale.ENABLED = True
    # config.yaml then holds what was found, and is not searched again.
    fitted.SOLVER.IMS_PER_BATCH, fitted.SOLVER.AUTO_BATCH_SIZE = batch, False
    if cfg.is_frozen():
        fitted.freeze()
    return fitted


def check_batch_is_known(cfg: CfgNode) -> None:
    """Raise ConfigError if SOLVER.AUTO_BATCH_SIZE waits for `with_fitting_batch`."""
    # A trainer cannot call it: whether a run is resumed, with its own batch, is said later.
    if cfg.SOLVER.AUTO_BATCH_SIZE:
        raise ConfigError(
            "SOLVER.AUTO_BATCH_SIZE is True, but a Trainer needs a batch that is known. Call "
            "Trainer(with_fitting_batch(cfg)), from panoptic_ext.engine; resume=True keeps the "
            "batch of a run that goes on"
        )


def largest_fitting(fits: Callable[[int], bool], most: int) -> int:
    """The largest number that fits, of 1, 2, 3, 4, 6, 8, 12, 16, 24 and so on.

    Args:
        fits: whether a number does; if it does, all smaller ones do. Called with growing numbers,
            and with none after the first that does not fit but the one between.
        most: upper limit.

    Returns:
        0 if not even 1 fits.
    """
    best, power = 0, 1
    while power <= most and fits(power):
        best, power = power, 2 * power
    between = best + best // 2
    if best > 1 and between <= most and fits(between):
        best = between
    return best


class TrialSteps:
    """Training steps with batches of one large sample, to see whether they fit.

    Attributes:
        peaks: images of a part -> share of the memory that was in use at most; of those that fit
            or nearly.
    """

    def __init__(
        self,
        make_step: Callable[[list[dict[str, Any]]], TrainStep],
        sample: dict[str, Any],
        memory: Callable[[], float],
        parts: int = 1,
    ) -> None:
        """
        Args:
            make_step: batch -> a step that trains on this batch whenever it runs.
            sample: the sample that is repeated.
            memory: gives the largest share of the memory that was in use since its last call.
            parts: of a batch that a step computes one after another.
        """
        self._make_step, self._sample, self._memory = make_step, sample, memory
        self._parts = parts
        self.peaks: dict[int, float] = {}

    def fits(self, number: int) -> bool:
        """Whether steps with so many images in each part leave a tenth of the memory free."""
        self._memory()
        try:
            with EventStorage(0):
                step = self._make_step([self._sample] * (number * self._parts))
                for _ in range(_NUM_TRIAL_STEPS):
                    step.run_step()
        except torch.OutOfMemoryError:
            return False
        self.peaks[number] = self._memory()
        return self.peaks[number] <= 1 - _FREE_SHARE


def _fitting_batch(cfg: CfgNode) -> int:
    """Images of all workers, of which each takes as many as the one with the least memory."""
    steps = cfg.SOLVER.ACCUMULATION_STEPS
    with preserved_rng():
        sample = _largest_sample(cfg)
        parts = _trial_parts(cfg)
        trials = TrialSteps(lambda batch: _step_of(cfg, batch), sample, _peak_memory, parts)
        number = min(comm.all_gather(largest_fitting(trials.fits, _MAX_BATCH)))
    torch.cuda.empty_cache()
    height, width = sample["image"].shape[-2:]
    if not number:
        raise ConfigError(
            f"a training step with one image of {height} x {width} pixels does not fit into the "
            "GPU's memory; lower INPUT.MIN_SIZE_TRAIN and MAX_SIZE_TRAIN, crop (INPUT.CROP), "
            "or set SOLVER.AMP.ENABLED True"
        )
    batch = number * steps * comm.get_world_size()
    logger.info(
        "SOLVER.AUTO_BATCH_SIZE: %d images of up to %d x %d pixels fit%s, in %d %% of the memory",
        batch,
        height,
        width,
        f" in parts of {number}" if steps > 1 else "",
        round(100 * trials.peaks.get(number, 0)),
    )
    return batch


def _trial_parts(cfg: CfgNode) -> int:
    """Parts of a trial step: from the second on, the gradients of those before take memory, too."""
    return min(cfg.SOLVER.ACCUMULATION_STEPS, 2)


def _largest_sample(cfg: CfgNode) -> dict[str, Any]:
    """The largest of some samples that training would draw."""
    one = cfg.clone()
    one.defrost()
    one.SOLVER.IMS_PER_BATCH, one.DATALOADER.NUM_WORKERS = comm.get_world_size(), 0
    samples = [batch[0] for batch in islice(build_train_loader(one, seed=0), _NUM_CANDIDATES)]
    return max(samples, key=lambda sample: sample["image"].numel())


def _step_of(cfg: CfgNode, batch: list[dict[str, Any]]) -> TrainStep:
    """A step with a model and an optimizer of its own, so that no memory outlives it."""
    model = build_model(without_pretrained(cfg))
    return TrainStep(
        model,
        [batch] * _NUM_TRIAL_STEPS,
        build_optimizer(cfg, model),
        build_grad_scaler(cfg),
        training_precision(cfg),
        _trial_parts(cfg),
    )


def _peak_memory() -> float:
    """Largest share of the GPU's memory that was reserved since the last call."""
    share = torch.cuda.max_memory_reserved() / torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return share


def _batch_of_run(cfg: CfgNode) -> int | None:
    """The batch of the run in OUTPUT_DIR; None if it has no checkpoint or no readable config."""
    reader = Checkpointer(torch.nn.Identity(), cfg.OUTPUT_DIR, save_to_disk=False)
    path = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    if not (reader.has_checkpoint() and os.path.isfile(path)):
        return None
    try:
        with open(path, encoding="utf-8") as stream:
            return int(load_plain_yaml(stream.read())["SOLVER"]["IMS_PER_BATCH"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError):
        return None
