"""Run `panoptic-ext train`: training, evaluation or a dry run, in one process or several."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import signal
import sys
from contextlib import AbstractContextManager, nullcontext

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, launch
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from panoptic_ext.data.datasets.parsed import parsed_once
from panoptic_ext.engine import distributed
from panoptic_ext.engine.auto_batch import with_fitting_batch
from panoptic_ext.engine.auto_scale import auto_scaled
from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.engine.closing_line import closing_line
from panoptic_ext.engine.device import choose_device, make_current, set_precision
from panoptic_ext.engine.dry_run import dry_run
from panoptic_ext.engine.output_folder import prepare_output
from panoptic_ext.engine.resume_command import with_command
from panoptic_ext.engine.run_config import (
    has_own_weights,
    load_cfg,
    warn_if_warmup_never_ends,
    without_pretrained,
)
from panoptic_ext.engine.run_info import save_run_info
from panoptic_ext.engine.trainer import Trainer, is_for_console
from panoptic_ext.errors import ConfigError, PanopticExtError
from panoptic_ext.evaluation.build import result_folder
from panoptic_ext.interruption import Interrupted, Terminated, stoppable

__all__ = ["train_or_evaluate", "worker_name"]

logger = logging.getLogger(__name__)

_EXIT_CODES_AFTER_SIGNAL = (128 + signal.SIGINT, 128 + signal.SIGTERM)


def train_or_evaluate(args: argparse.Namespace) -> int:
    """Train, evaluate or do a dry run, on as many workers as the arguments ask for.

    Args:
        args: the result of `panoptic_ext.commands.train.parse_args`.

    Returns:
        Exit code: 0, 130 after Ctrl-C, 143 after SIGTERM, or that of spawned workers.
    """
    try:
        with _parsed_once_to_evaluate(args):
            status = _start(args)
    except Interrupted as stopped:
        status = _report_stop(stopped, args)
    # Not after an error, because leaving waits for all workers, and some may have failed.
    distributed.leave()
    return status


def _parsed_once_to_evaluate(args: argparse.Namespace) -> AbstractContextManager[None]:
    """Share the parsed JSON between the config, which reads its classes, and an evaluation."""
    # A training does not keep the parsed JSON: it would take up memory for days.
    return parsed_once() if args.eval_only else nullcontext()


def _start(args: argparse.Namespace) -> int:
    cfg = _load(args)
    if args.eval_only and not has_own_weights(cfg):
        _check_weights(cfg, args.resume)
    on_cuda = cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available()
    if distributed.under_torchrun():
        distributed.join_torchrun(use_cuda=on_cuda)
        return _work(cfg, args)
    workers = args.num_gpus * args.num_machines if on_cuda else 1
    if on_cuda and args.num_gpus > torch.cuda.device_count():
        raise ConfigError(
            f"--num-gpus {args.num_gpus}, but this machine has {torch.cuda.device_count()} GPUs"
        )
    distributed.check_workers(cfg, workers)
    if workers == 1:
        return _work(cfg, args)
    return _launch(args)


def _launch(args: argparse.Namespace) -> int:
    """Spawn the workers of this machine and wait for them; returns the exit code.

    Raises:
        KeyboardInterrupt, Terminated: a signal ended the workers before they could say so.
    """
    with stoppable(on_signal=_stop_workers) as stop:
        try:
            launch(
                _spawned,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
        except torch.multiprocessing.ProcessExitedException as error:
            # The worker has printed its error, or where to go on from.
            if error.exit_code in (2, *_EXIT_CODES_AFTER_SIGNAL):
                return error.exit_code if stop.signum is None else 128 + stop.signum
            if stop.signum is None:
                raise
    if stop.signum is None:
        return 0
    # While the model is built, SIGTERM ends a worker at once, and torch hides its Ctrl-C.
    raise Terminated if stop.signum == signal.SIGTERM else KeyboardInterrupt


def _stop_workers(_signum: int) -> None:
    """Ask the workers to stop, because the signal may have been sent to this process alone."""
    # SIGTERM, not SIGINT: Ctrl-C reaches the workers too, and a second SIGINT would end them at
    # once.
    for worker in multiprocessing.active_children():
        worker.terminate()


def _spawned(args: argparse.Namespace) -> None:
    try:
        with _parsed_once_to_evaluate(args):
            status = _work(_load(args), args)
    except Interrupted as stopped:
        status = _report_stop(stopped, args)
    except PanopticExtError as error:
        sys.stderr.write(f"error{worker_name()}: {error}\n")
        sys.stderr.flush()
        status = 2
    if status:
        sys.exit(status)


def _report_stop(stopped: Interrupted, args: argparse.Namespace) -> int:
    if comm.is_main_process():
        sys.stderr.write(with_command(str(stopped), args.argv) + "\n")
        sys.stderr.flush()
    return stopped.exit_code


def _load(args: argparse.Namespace) -> CfgNode:
    if not args.config_file:
        raise ConfigError("no config: give --config-file FILE, e.g. one of configs/")
    return load_cfg(args.config_file, args.opts)


def _work(cfg: CfgNode, args: argparse.Namespace) -> int:
    """Run this worker, after it has joined the others; returns the exit code."""
    if comm.is_main_process():
        prepare_output(cfg.OUTPUT_DIR)
    comm.synchronize()
    for name in ("fvcore", "detectron2", "panoptic_ext"):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name)
    for handler in logging.getLogger("panoptic_ext").handlers:
        if getattr(handler, "stream", None) is sys.stdout:
            handler.addFilter(is_for_console)
    choose_device(cfg)
    make_current(cfg)
    if distributed.under_torchrun():  # spawned workers have been checked in `_start`
        distributed.check_workers(cfg, comm.get_world_size())
    set_precision(cfg)
    if cfg.MODEL.DEVICE == "cpu" and args.num_gpus > 1:
        logger.warning("--num-gpus %d is ignored on the CPU", args.num_gpus)
    cfg = _scaled(cfg, args)
    if comm.is_main_process() and args.eval_only and not args.dry_run:
        # An evaluation must not overwrite the config of the training in OUTPUT_DIR.
        save_run_info(cfg, result_folder(cfg))
    logger.info("Worker %d of %d", comm.get_rank(), comm.get_world_size())
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    if not args.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
        warn_if_warmup_never_ends(cfg)
    if args.dry_run:
        dry_run(cfg)
    elif args.eval_only:
        _evaluate(cfg, args.resume)
    else:
        reader = Checkpointer(torch.nn.Identity(), cfg.OUTPUT_DIR, save_to_disk=False)
        trainer = Trainer(cfg, weights_follow=args.resume and reader.has_checkpoint())
        trainer.resume_or_load(resume=args.resume)
        trainer.register_hooks([_RunInfoHook(cfg)])
        results = trainer.train()
        if comm.is_main_process():
            logger.info(closing_line(cfg.OUTPUT_DIR, results))
    return 0


class _RunInfoHook(HookBase):
    """Describes the run in OUTPUT_DIR once everything has been checked: the last hook to begin.

    Until then the files are those of the run before, whose weights they belong to.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._cfg = cfg

    def before_train(self) -> None:
        if comm.is_main_process():
            save_run_info(self._cfg, self._cfg.OUTPUT_DIR)


def _scaled(cfg: CfgNode, args: argparse.Namespace) -> CfgNode:
    """The config of a training with the batch that fits and what follows from it."""
    if args.eval_only:
        return cfg
    return auto_scaled(with_fitting_batch(cfg, resume=args.resume))


def _check_weights(cfg: CfgNode, resume: bool) -> None:
    """Raise CheckpointError, before anything is built, if there are no weights to evaluate."""
    reader = Checkpointer(torch.nn.Identity(), cfg.OUTPUT_DIR, save_to_disk=False)
    if not (resume and os.path.isdir(cfg.OUTPUT_DIR) and reader.has_checkpoint()):
        reader.check_there(cfg.MODEL.WEIGHTS)


def _evaluate(cfg: CfgNode, resume: bool) -> None:
    if not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST is empty; name a data set to evaluate on")
    reader = Checkpointer(torch.nn.Identity(), cfg.OUTPUT_DIR, save_to_disk=False)
    # The main process decides for all workers, which may see other folders on other machines.
    resume = resume and comm.all_gather(reader.has_checkpoint())[0]
    own_weights = not resume and has_own_weights(cfg)
    model = Trainer.build_model(cfg if own_weights else without_pretrained(cfg))
    checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, allow_pickle=cfg.MODEL.ALLOW_PICKLE)
    if resume:
        checkpointer.resume()
    elif not own_weights:
        checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[], strict=True)
    Trainer.test(cfg, model)


def worker_name() -> str:
    """The worker's number for messages, as in " (worker 1)"; "" in the main process."""
    return f" (worker {comm.get_rank()})" if comm.get_rank() else ""
