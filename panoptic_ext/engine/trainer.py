"""The trainer: Detectron2's DefaultTrainer with a complete resume, equal on v0.6 and main."""

from __future__ import annotations

import logging
import os
import weakref
from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from panoptic_ext.engine import evaluate, loader, optimizer
from panoptic_ext.engine.auto_batch import check_batch_is_known
from panoptic_ext.engine.auto_scale import auto_scaled, scaled_to_workers
from panoptic_ext.engine.best_metric import build_best_metric
from panoptic_ext.engine.best_weights import agree_with_history, drop_former_best, keep_best
from panoptic_ext.engine.build_model import build_model, distributed_model
from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.engine.checkpoint.fingerprint import compare_runs, run_fingerprint
from panoptic_ext.engine.checkpoint.rng import get_rng_state
from panoptic_ext.engine.checkpoint.trainer_state import check_parts, restore_state, state_of
from panoptic_ext.engine.class_take_over import class_take_over
from panoptic_ext.engine.device import on_this_machine
from panoptic_ext.engine.hooks import (
    AverageHook,
    CheckpointHook,
    EvaluationHook,
    LRScheduler,
    PreciseBNHook,
    is_precise_bn_wanted,
)
from panoptic_ext.engine.output_folder import prepare_output
from panoptic_ext.engine.precision import build_grad_scaler, training_precision
from panoptic_ext.engine.progress import ProgressHook
from panoptic_ext.engine.resume_command import GOES_ON
from panoptic_ext.engine.run_config import has_own_weights, without_pretrained
from panoptic_ext.engine.stretched_schedule import build_timeline, stretched
from panoptic_ext.engine.system_errors import explain_system_error
from panoptic_ext.engine.time_budget import TimeBudgetHook
from panoptic_ext.engine.train_step import TrainStep
from panoptic_ext.engine.weight_average import build_weight_average
from panoptic_ext.engine.writers import WriterHook
from panoptic_ext.interruption import Interrupted, StopRequest, stoppable

__all__ = ["Trainer", "is_for_console"]

logger = logging.getLogger(__name__)

_STOPPING = (
    "stopping: this iteration ends and a checkpoint is written; a second signal ends at once"
)


class Trainer(DefaultTrainer):
    """Build everything from a config, train, evaluate, save checkpoints and resume.

    A checkpoint holds model, optimizer, schedule, gradient scaler, iteration, every worker's random
    generators and the seed of the data. On a CPU a resumed run therefore has the losses of an
    uninterrupted one, bit for bit. The `iteration` of a checkpoint is the last one it has trained.

    The classmethods `build_*` and `test` may be overridden as in Detectron2.
    """

    def __init__(self, cfg: CfgNode, *, weights_follow: bool = False) -> None:
        """
        Args:
            cfg: the config; where it asks for CUDA and there is none, the CPU is taken.
            weights_follow: True if a checkpoint will be loaded: pretrained weights are not fetched.

        Raises:
            ConfigError: SOLVER.AUTO_BATCH_SIZE is True, which `with_fitting_batch` settles before.
        """
        # Not DefaultTrainer.__init__, which differs between v0.6 and main.
        TrainerBase.__init__(self)
        # `panoptic-ext train` has made the folder already, for its log; other callers have not.
        if comm.is_main_process() and not os.path.isdir(cfg.OUTPUT_DIR):
            prepare_output(cfg.OUTPUT_DIR)
        check_batch_is_known(cfg)
        cfg = on_this_machine(cfg)
        cfg = scaled_to_workers(auto_scaled(cfg), comm.get_world_size())
        own = not _overrides(type(self), "build_evaluator", "test")
        self.best = build_best_metric(cfg, own_evaluators=own)
        model = self.build_model(without_pretrained(cfg) if weights_follow else cfg)
        optim = self.build_optimizer(cfg, model)
        precision = training_precision(cfg)
        if precision.dtype is not None:
            logger.info("Mixed precision: autocast to %s on %s", precision.dtype, cfg.MODEL.DEVICE)
        self._trainer = TrainStep(
            distributed_model(model),
            self.build_train_loader(cfg),
            optim,
            build_grad_scaler(cfg),
            precision,
            cfg.SOLVER.ACCUMULATION_STEPS,
        )
        self.average = build_weight_average(cfg, model)
        self._timeline = build_timeline(cfg)
        self.scheduler = stretched(self.build_lr_scheduler(cfg, optim), self._timeline)
        self.checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            allow_pickle=cfg.MODEL.ALLOW_PICKLE,
            trainer=weakref.proxy(self),  # a reference would be a cycle that keeps the model alive
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.worker_rng: list[dict[str, Any]] = []
        self._history: dict[str, list[list[float]]] = {}
        self._steps_done = False
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume from the last checkpoint of OUTPUT_DIR, or start from MODEL.WEIGHTS.

        Args:
            resume: False starts from MODEL.WEIGHTS at iteration 0 and moves checkpoints of an
                earlier run into OUTPUT_DIR/previous-<time>. True without a checkpoint starts from
                MODEL.WEIGHTS too.

        Raises:
            CheckpointError: no file can be read, or its content does not fit the model.
        """
        # The main process decides for all workers, which may see other folders on other machines.
        has_checkpoint = comm.all_gather(self.checkpointer.has_checkpoint())[0]
        if resume and has_checkpoint:
            extra = self.checkpointer.resume(check=partial(check_parts, trainer=self))
            self.start_iter = self.iter + 1
            compare_runs(extra.get("panoptic_ext", {}), self.cfg)
        else:
            if resume:
                logger.info("No checkpoint in %s; starting from the beginning", self.cfg.OUTPUT_DIR)
            if not has_own_weights(self.cfg):
                edit = class_take_over(self.cfg)
                self.checkpointer.load(self.cfg.MODEL.WEIGHTS, checkpointables=[], edit=edit)
            if self.average is not None:
                self.average.restart()
            # After loading, because MODEL.WEIGHTS may be one of the checkpoints that are moved.
            folder = "" if resume else self.checkpointer.set_aside()
            if folder:
                logger.warning(
                    "The checkpoints of an earlier run are now in %s. To go on with that run: "
                    "move them back and add --resume",
                    folder,
                )
        if resume:
            agree_with_history(self)
        self.data_loader.start_iter = self.start_iter

    def train(self) -> Any:
        """Train from `start_iter` to `max_iter`.

        Returns:
            Results of the last evaluation.

        Raises:
            NonFiniteLossError: a loss is infinite or NaN; raised on all workers.
            DatasetError: a data worker died.
            ConfigError: the disk is full.
            Interrupted: Ctrl-C or SIGTERM came, and the caller has no handler for it. It is raised
                on all workers after the same iteration, whose checkpoint has been written.
        """
        logger.info("Training from iteration %d to %d", self.start_iter, self.max_iter)
        self.iter = self.start_iter
        announce = _STOPPING if comm.is_main_process() else ""
        with stoppable(announce) as stop, EventStorage(self.start_iter) as self.storage:
            self._trainer.stop = stop
            try:
                self._restore_history()
                self.before_train()
                self._run_steps()
                self.after_train()
            except Interrupted as interrupted:
                raise self._saved_for_resume(interrupted) from None
            except BaseException as error:
                self._close_writers()
                explained = explain_system_error(error)
                if explained is not None:
                    raise explained from error
                raise
            finally:
                self.data_loader.report_skipped()
        results = getattr(self, "_last_eval_results", None)
        if len(self.cfg.TEST.EXPECTED_RESULTS) and comm.is_main_process():
            verify_results(self.cfg, results)
        return results

    def build_hooks(self) -> list[Any]:
        """Build timers, schedule, PreciseBN, checkpoints, evaluation and writers, in this order."""
        cfg = self.cfg

        precise_bn = None
        if is_precise_bn_wanted(cfg, self.model):
            # No data workers, as in Detectron2: that saves their memory and the time to start them.
            without_workers = cfg.clone()
            without_workers.defrost()
            without_workers.DATALOADER.NUM_WORKERS = 0
            precise_bn = PreciseBNHook(
                cfg.TEST.EVAL_PERIOD,
                self.model,
                self.build_train_loader(without_workers),
                cfg.TEST.PRECISE_BN.NUM_ITER,
            )
        return [
            hooks.IterationTimer(),
            TimeBudgetHook(cfg, self._timeline) if self._timeline is not None else None,
            ProgressHook(cfg) if comm.is_main_process() else None,
            LRScheduler(),
            AverageHook(),
            precise_bn,  # before the checkpoint, which then holds the statistics
            CheckpointHook(cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.CHECKPOINTS_TO_KEEP),
            # After the checkpoint, so that no training is lost if the evaluation fails.
            EvaluationHook(cfg.TEST.EVAL_PERIOD, self._evaluate),
            WriterHook(cfg) if comm.is_main_process() else None,
        ]

    def gather_worker_state(self) -> None:
        """Gather the workers' random generators for `state_dict`; all workers must call this."""
        self.worker_rng = comm.all_gather(get_rng_state())

    def checkpoint_hook(self) -> CheckpointHook:
        """The hook that writes the checkpoints, or a new one if a subclass has left it out."""
        present = [hook for hook in self._hooks if isinstance(hook, CheckpointHook)]
        hook = present[0] if present else CheckpointHook(self.max_iter)
        hook.trainer = self
        return hook

    def save_checkpoint(self, name: str) -> None:
        """Write `<OUTPUT_DIR>/<name>.pth` on the main process."""
        self.checkpointer.save(
            name,
            weights=self.average.weights() if self.average is not None else None,
            iteration=self.iter,
            panoptic_ext=run_fingerprint(self.cfg),
        )
        drop_former_best(self.checkpointer)

    def averaged_weights(self) -> AbstractContextManager[None]:
        """In the block the model has the weights that are evaluated: averages, if they are kept."""
        return self.average.applied() if self.average is not None else nullcontext()

    @property
    def stop_request(self) -> StopRequest:
        """Whether a signal has asked this worker to stop."""
        return self._trainer.stop

    @property
    def grad_scaler(self) -> torch.amp.GradScaler | None:
        """The gradient scaler of a training in float16; None in other precisions."""
        return self._trainer.grad_scaler

    def state_dict(self) -> dict[str, Any]:
        """The state of everything but the model, as tensors and plain values."""
        return state_of(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state of `state_dict`.

        Raises:
            CheckpointError: the state is that of another trainer or another optimizer.
        """
        restore_state(state_dict, self)
        self._history = state_dict.get("history", {})

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Detectron2's build_model.

        Raises:
            ConfigError: see `engine.build_model`.
        """
        return build_model(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Build SGD or AdamW; see `engine.optimizer`."""
        return optimizer.build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer_: torch.optim.Optimizer) -> Any:
        """Build the learning rate schedule; see `engine.optimizer`."""
        return optimizer.build_lr_scheduler(cfg, optimizer_)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> loader.TrainLoader:
        """Build this worker's training loader; see `engine.loader`."""
        return loader.build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Build this worker's test loader of a data set; see `engine.loader`."""
        return loader.build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Build the evaluators of TEST.EVALUATORS, which write into OUTPUT_DIR/inference/<name>."""
        return evaluate.build_evaluator(cfg, dataset_name)

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None
    ) -> OrderedDict[str, Any] | dict[str, Any]:
        """Evaluate on every data set of DATASETS.TEST; see `engine.evaluate.evaluate`."""
        return evaluate.evaluate(cls, cfg, model, evaluators)

    def _restore_history(self) -> None:
        """Put the latest values of scalars back, over which the writers average."""
        for name, history in self._history.items():
            for value, iteration in history:
                self.storage.iter = int(iteration)
                self.storage.put_scalar(name, value)
        self.storage.iter = self.start_iter

    def _evaluate(self) -> Any:
        with self.averaged_weights():
            self._last_eval_results = self.test(self.cfg, self.model)
        keep_best(self, self._last_eval_results)
        return self._last_eval_results

    def _run_steps(self) -> None:
        while self.iter < self.max_iter:  # a time budget changes it on the way
            # Here, so that it also ends a run that was killed before it could end.
            if self.best is not None and self.best.is_stalled:
                self.iter -= 1
                self.checkpoint_hook().save(final=True)
                logger.info("Training ends after iteration %d: %s", self.iter, self.best.why())
                return
            self.before_step()
            self.run_step()
            self._steps_done = True
            self.after_step()
            if self._trainer.stopping:
                raise self._trainer.stop.interrupted("")
            self.iter += 1

    def _saved_for_resume(self, interrupted: Interrupted) -> Interrupted:
        """Write the checkpoint of the iteration that has ended; return the error that names it."""
        progress = f"stopped after iteration {self.iter} of {self.max_iter}"
        if self.iter >= self.max_iter:
            progress = f"stopped after all {self.max_iter} iterations, within the evaluation"
        elif self._steps_done:
            self.checkpoint_hook().save()
        for writer in self._hooks:
            if isinstance(writer, WriterHook):
                writer.close()
        comm.synchronize()  # no worker may leave before the file has been written
        file = self.checkpointer.get_checkpoint_file()
        where = f"; the checkpoint is {file}" if file else ""
        return Interrupted(interrupted.signum, f"{progress}{where}. {GOES_ON}")

    def _close_writers(self) -> None:
        for hook in self._hooks:
            if isinstance(hook, WriterHook):
                hook.after_train()


def _overrides(kind: type[Trainer], *names: str) -> bool:
    """Whether a subclass defines one of these methods of `Trainer` anew."""
    above = kind.__mro__[: kind.__mro__.index(Trainer)]
    return any(name in vars(base) for base in above for name in names)


def is_for_console(record: logging.LogRecord) -> bool:
    """A filter for the console's handler: False for long records that log.txt alone gets."""
    return not getattr(record, "is_for_file_only", False)
