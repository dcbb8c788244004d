"""Hooks of the trainer that Detectron2 does not have."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.engine import hooks
from detectron2.engine.train_loop import HookBase
from detectron2.utils import comm
from fvcore.nn.precise_bn import get_bn_modules

from panoptic_ext.engine.checkpoint.rng import get_rng_state, set_rng_state
from panoptic_ext.engine.divergence import divergence_of
from panoptic_ext.engine.layer_decay import BACKBONE_MARK
from panoptic_ext.errors import NonFiniteLossError
from panoptic_ext.interruption import Interrupted
from panoptic_ext.modeling.backbone.freezing import put_frozen_in_evaluation

__all__ = [
    "AverageHook",
    "CheckpointHook",
    "EvaluationHook",
    "LRScheduler",
    "PreciseBNHook",
    "is_precise_bn_wanted",
]

logger = logging.getLogger(__name__)


class CheckpointHook(HookBase):
    """Save a checkpoint every `period` iterations and after the last one.

    The hook must run on all workers, because the checkpoint holds their random generators. Weights
    that are infinite or NaN are never saved.
    """

    def __init__(self, period: int, keep: int = 0) -> None:
        """
        Args:
            period: iterations between checkpoints.
            keep: how many of the newest periodic checkpoints are kept; 0 keeps all.
        """
        self._period = period
        self._keep = keep
        self._saved = ""

    def after_step(self) -> None:
        iteration = self.trainer.iter
        if self._is_last(iteration) or (iteration + 1) % self._period == 0:
            self.save()

    def save(self, *, final: bool = False) -> None:
        """Write the checkpoint of the iteration that has ended, unless it has been written.

        Args:
            final: the training ends with this iteration, though it is not the last one.
        """
        iteration = self.trainer.iter
        last = final or self._is_last(iteration)
        name = "model_final" if last else f"model_{iteration:07d}"
        if name == self._saved:
            return
        self._check_weights(iteration)
        self.trainer.gather_worker_state()
        self.trainer.save_checkpoint(name)
        if self._keep:
            self.trainer.checkpointer.prune(self._keep)
        self._saved = name

    def _is_last(self, iteration: int) -> bool:
        return iteration >= self.trainer.max_iter - 1

    def _check_weights(self, iteration: int) -> None:
        bad = [n for n, p in self.trainer.model.named_parameters() if not bool(p.isfinite().all())]
        for names in comm.all_gather(bad):
            if names:
                raise NonFiniteLossError(
                    f"{len(names)} parameters are infinite or NaN after iteration {iteration}, the "
                    f"first is {names[0]}; no checkpoint was written and the last one is untouched."
                    " Lower SOLVER.BASE_LR or enable SOLVER.CLIP_GRADIENTS, and go on with --resume"
                )


class EvaluationHook(hooks.EvalHook):
    """Detectron2's EvalHook, which makes up for an evaluation that a killed run owed.

    A checkpoint is written before the evaluation of its iteration. If the run is killed in between,
    and keeps its best evaluation, the resumed run evaluates before it goes on.
    """

    def before_train(self) -> None:
        trainer, start = self.trainer, self.trainer.start_iter
        due = self._period > 0 and 0 < start < trainer.max_iter and start % self._period == 0
        if trainer.best is None or not due or trainer.best.has(start - 1):
            return
        logger.info("Evaluating iteration %d, of which there is no result yet", start - 1)
        trainer.iter = trainer.storage.iter = start - 1
        self._do_eval()
        trainer.iter = trainer.storage.iter = start


class LRScheduler(hooks.LRScheduler):
    """Detectron2's hook, which also writes the learning rate of a backbone that warms up by itself.

    "lr_backbone" is the highest of the backbone, and "lr" that of the largest group of the others.
    The class has the name of Detectron2's, under which checkpoints hold its state.
    """

    def after_step(self) -> None:
        groups = self.trainer.optimizer.param_groups
        backbone = [group["lr"] for group in groups if group.get(BACKBONE_MARK)]
        others = [group for group in groups if not group.get(BACKBONE_MARK)]
        if not (backbone and others):
            super().after_step()
            return
        largest = max(others, key=lambda group: len(group["params"]))
        self.trainer.storage.put_scalar("lr", largest["lr"], smoothing_hint=False)
        self.trainer.storage.put_scalar("lr_backbone", max(backbone), smoothing_hint=False)
        self.scheduler.step()


class PreciseBNHook(hooks.PreciseBN):
    """Detectron2's PreciseBN, but on the same batches every time, for the weights of evaluation.

    If a signal stops it, statistics and random generators are as before it began, so that the
    iteration can be saved; the resumed run does it before it goes on, and saves the iteration anew.
    """

    _is_owed = False

    def before_train(self) -> None:
        if not self._is_owed:
            return
        self._is_owed = False
        self.update_stats()
        # The file has other statistics than the evaluation; after the last iteration it would stay
        # the last one.
        trainer = self.trainer
        trainer.iter = trainer.start_iter - 1
        trainer.checkpoint_hook().save()
        trainer.iter = trainer.start_iter

    def state_dict(self) -> dict[str, Any]:
        return {"is_owed": self._is_owed} if self._is_owed else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._is_owed = bool(state_dict["is_owed"])

    def update_stats(self) -> None:
        if not self._disabled:
            # The trainer's seed is only known here: a resumed run takes it from the checkpoint.
            self._data_loader.seed = self.trainer.data_loader.seed
            # Detectron2's hook reads on through the data set. A resumed run would then average over
            # other batches, and get other statistics and results than an uninterrupted run.
            self._data_iter = self._batches()
        # Without a step before it, as in a resumed run, norms of frozen parts would be taken, too.
        put_frozen_in_evaluation(getattr(self._model, "module", self._model))
        try:
            with self.trainer.averaged_weights(), self._undone_by_signal():
                super().update_stats()
        except Exception as error:
            problem = divergence_of(error, self._model)
            if not problem:
                raise
            raise NonFiniteLossError(
                f"the statistics of batch norms after iteration {self.trainer.iter} are not "
                f"finite: {problem}. The last checkpoint is untouched. Lower SOLVER.BASE_LR or "
                "enable SOLVER.CLIP_GRADIENTS, and go on with --resume"
            ) from error

    def _batches(self) -> Iterator[Any]:
        """Batches from the first one on, until a signal asks to stop."""
        stop = self.trainer.stop_request
        for batch in self._data_loader:
            # Several workers end together, which needs an exchange: they finish this first.
            if comm.get_world_size() == 1:
                stop.check("")
            yield batch

    @contextmanager
    def _undone_by_signal(self) -> Iterator[None]:
        norms = [] if self._disabled else get_bn_modules(self._model)
        states = [copy.deepcopy(norm.state_dict()) for norm in norms]
        momenta = [norm.momentum for norm in norms]
        rng = get_rng_state()
        try:
            yield
        except Interrupted:
            for norm, state, momentum in zip(norms, states, momenta, strict=True):
                norm.load_state_dict(state)
                norm.momentum = momentum
            set_rng_state(rng)
            self._is_owed = True
            raise


class AverageHook(HookBase):
    """Take the weights of every iteration into the trainer's average, if it keeps one."""

    def after_step(self) -> None:
        if self.trainer.average is not None:
            self.trainer.average.update()


def is_precise_bn_wanted(cfg: Any, model: torch.nn.Module) -> bool:
    """Whether the config asks for PreciseBN and the model has layers to which it applies."""
    return bool(cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(model))
