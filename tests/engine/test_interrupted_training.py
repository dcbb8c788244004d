"""Ctrl-C and SIGTERM in training and evaluation: nothing is lost, one line says so."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from torch import nn

from panoptic_ext.engine import evaluate
from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.engine.distributed import leave, make_local_group
from panoptic_ext.engine.hooks import PreciseBNHook
from panoptic_ext.errors import CheckpointError, DownloadError
from panoptic_ext.interruption import Interrupted, stoppable
from tests.engine.test_train_net import command
from tests.engine.test_trainer import lines, trainer_of
from tests.tiny.file_server import free_port
from tests.tiny.programs import Program, run_workers, script
from tests.tiny.training import TinyTrainer, tiny_cfg


def signal_at(trainer: TinyTrainer, iteration: int, signum: int) -> TinyTrainer:
    """The trainer, which gets a signal in the middle of the step of `iteration`."""
    run_step = trainer.run_step

    def run_and_signal() -> None:
        if trainer.iter == iteration:
            signal.raise_signal(signum)
        run_step()

    trainer.run_step = run_and_signal
    return trainer


@pytest.mark.parametrize(
    ("iteration", "signum"),
    [(0, signal.SIGINT), (5, signal.SIGTERM), (7, signal.SIGINT), (11, signal.SIGINT)],
)
def test_stopped_and_resumed_equals_uninterrupted(
    tmp_path: Path, iteration: int, signum: int
) -> None:
    whole = trainer_of(tiny_cfg(tmp_path / "whole"))
    whole.train()
    cfg = tiny_cfg(tmp_path / "parts")
    first = signal_at(trainer_of(cfg), iteration, signum)
    with pytest.raises(Interrupted, match=f"stopped after iteration {iteration} of 12; ") as stop:
        first.train()
    assert stop.value.signum == signum and "--resume goes on from there" in str(stop.value)
    assert first.losses == whole.losses[: iteration + 1]
    name = "model_final" if iteration == 11 else f"model_{iteration:07d}"
    assert str(tmp_path / "parts" / f"{name}.pth") in str(stop.value)
    torch.rand(17)  # the new process has other random numbers
    second = trainer_of(cfg, resume=True)
    assert second.start_iter == iteration + 1
    second.train()
    assert first.losses + second.losses == whole.losses
    state, expected = second.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(state[k], expected[k]) for k in expected)
    if iteration < 11:  # the rows that were due are there, and no other
        assert lines(tmp_path / "parts") == lines(tmp_path / "whole")


@pytest.mark.parametrize(("average", "period"), [(False, 6), (True, 6), (False, 0)])
def test_a_signal_during_precise_batch_norm(tmp_path: Path, average: bool, period: int) -> None:
    def cfg_of(folder: str) -> CfgNode:
        cfg = tiny_cfg(tmp_path / folder)
        cfg.TEST.EVAL_PERIOD, cfg.TEST.PRECISE_BN.ENABLED = period, True
        cfg.TEST.PRECISE_BN.NUM_ITER, cfg.SOLVER.EMA.ENABLED = 5, average
        return cfg

    whole = trainer_of(cfg_of("whole"))
    whole.train()
    first = trainer_of(cfg_of("parts"))
    (hook,) = (hook for hook in first._hooks if isinstance(hook, PreciseBNHook))
    batches = hook._data_loader

    class SignalLoader:
        """Its third batch comes with a signal."""

        seed = 0

        def __iter__(self) -> Iterator[Any]:
            batches.seed = self.seed
            for number, batch in enumerate(batches):
                if number == 3:
                    signal.raise_signal(signal.SIGINT)
                yield batch

    hook._data_loader = SignalLoader()
    done = period or 12
    message = f"stopped after iteration {done - 1} of 12; the checkpoint is"
    with pytest.raises(Interrupted, match=message):
        first.train()
    torch.rand(17)
    second = trainer_of(cfg_of("parts"), resume=True)
    assert second.start_iter == done
    second.train()
    assert [*first.losses, *second.losses] == whole.losses
    state, expected = second.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(state[k], expected[k]) for k in expected)
    state, expected = (
        torch.load(tmp_path / folder / "model_final.pth", weights_only=True)["model"]
        for folder in ("parts", "whole")
    )
    assert all(torch.equal(state[k], expected[k]) for k in expected)


def test_a_signal_during_the_evaluation_keeps_the_iteration(tmp_path: Path) -> None:
    class Interrupting(TinyTrainer):
        @classmethod
        def test(cls, cfg: Any, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
            with stoppable() as stop:
                signal.raise_signal(signal.SIGTERM)
                stop.check("stopped after 3 images")
            return {}

    cfg = tiny_cfg(tmp_path)
    cfg.TEST.EVAL_PERIOD = 6
    trainer = Interrupting(cfg)
    trainer.resume_or_load(resume=False)
    with pytest.raises(Interrupted, match="stopped after iteration 5 of 12; the checkpoint is"):
        trainer.train()
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000005.pth"
    assert trainer_of(cfg, resume=True).start_iter == 6


def test_a_handler_of_the_caller_is_kept(tmp_path: Path) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda signum, _: seen.append(signum))
    try:
        trainer = signal_at(trainer_of(tiny_cfg(tmp_path)), 5, signal.SIGINT)
        trainer.train()
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT] and len(trainer.losses) == 12


class CountingEvaluator(DatasetEvaluator):
    """Counts images; a signal comes with one of them."""

    def __init__(self, signal_at: int | None) -> None:
        self.signal_at, self.seen, self.is_evaluated = signal_at, 0, False

    def process(self, inputs: Any, outputs: Any) -> None:
        if self.seen == self.signal_at:
            signal.raise_signal(signal.SIGINT)
        self.seen += len(inputs)

    def evaluate(self) -> dict[str, Any]:
        self.is_evaluated = True
        return {}


def interrupted_evaluation(*, signal_at: int | None) -> str:
    """Evaluate ten images; the message of the end."""
    evaluator = CountingEvaluator(signal_at)
    with pytest.raises(Interrupted) as stop:
        evaluate._run(nn.Identity(), [[i] for i in range(10)], evaluator)
    assert evaluator.seen == (10 if signal_at is None else signal_at + 1)
    assert not evaluator.is_evaluated
    return str(stop.value)


def test_an_evaluation_ends_after_the_current_image() -> None:
    assert interrupted_evaluation(signal_at=3).startswith("stopped after evaluating 4 of 10 images")


def _two_workers(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    make_local_group(2)
    trainer = trainer_of(tiny_cfg(folder, MAX_ITER=40))
    if rank == 1:  # one of them alone
        signal_at(trainer, 5, signal.SIGTERM)
    with pytest.raises(Interrupted):
        trainer.train()
    # The flag goes along with the losses: the step that the signal met, or the one after it.
    assert trainer.iter in (5, 6)
    assert os.path.isfile(os.path.join(folder, f"model_{trainer.iter:07d}.pth"))
    message = interrupted_evaluation(signal_at=3 if rank == 1 else None)
    assert message.startswith("stopped after evaluating 14 of 20 images")
    _evaluate_with_other_statistics(rank)
    _load_from_a_dead_address(rank, folder)
    leave()


def _evaluate_with_other_statistics(rank: int) -> None:
    """Results are those of the checkpoint, which holds the first worker's statistics."""
    model = nn.BatchNorm1d(2)
    model.running_mean.fill_(rank + 5)
    cfg = tiny_cfg("unused")
    cfg.DATASETS.TEST = ()
    evaluate.evaluate(None, cfg, model)
    assert model.running_mean.tolist() == [5, 5]


def _load_from_a_dead_address(rank: int, folder: str) -> None:
    """The main process alone downloads, and the others do not wait for what does not come."""
    os.environ["FVCORE_CACHE"] = folder
    error = DownloadError if rank == 0 else CheckpointError
    with pytest.raises(error, match="refuses the connection"):
        Checkpointer(nn.Linear(1, 1)).load(f"http://127.0.0.1:{free_port()}/{rank}.pth")


@pytest.mark.slow
def test_workers_stop_together_where_one_gets_the_signal(tmp_path: Path) -> None:
    run_workers(_two_workers, str(tmp_path))


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_ends_with_one_line(tmp_path: Path) -> None:
    """It reaches the whole process group: the data workers too, which go on and stay silent."""
    options = ("SOLVER.CHECKPOINT_PERIOD", "2", "DATALOADER.NUM_WORKERS", "2")
    words = command(tmp_path / "run", tmp_path / "cache", *options)
    process = Program(script, *words, folder=tmp_path, own_group=True)
    process.wait_for(tmp_path / "run" / "model_0000001.pth")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130
    printed = "".join(process.output)
    assert "Traceback" not in printed and "DataLoader worker" not in printed
    last = process.output[1].splitlines()[-1]
    assert last.startswith("stopped after iteration ") and "--resume" in last
    tagged = (tmp_path / "run" / "last_checkpoint").read_text()
    assert tagged in last and (tmp_path / "run" / tagged).stat().st_size
