"""The trainer: a resumed run equals an uninterrupted one, a loss that is not finite stops all."""

from __future__ import annotations

import itertools
import json
import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from torch import nn

from panoptic_ext.commands.train import main
from panoptic_ext.engine import TrainLoader
from panoptic_ext.engine.distributed import leave, make_local_group
from panoptic_ext.engine.trainer import Trainer
from panoptic_ext.engine.writers import trim_metrics
from panoptic_ext.errors import CheckpointError, ConfigError, NonFiniteLossError
from tests.tiny.accumulated_step import save_frozen_step_of_a_worker, save_step_of_a_worker
from tests.tiny.programs import run_workers
from tests.tiny.training import Killed, TinyTrainer, tiny_cfg, tiny_mapper, tiny_records


def trainer_of(cfg: CfgNode, *, resume: bool = False, kill_at: int | None = None) -> TinyTrainer:
    torch.manual_seed(cfg.SEED)
    trainer = TinyTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.kill_at = kill_at
    return trainer


def lines(folder: Path) -> list[dict[str, Any]]:
    """metrics.json without what measures time."""
    content = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    timing = ("time", "data_time", "eta_seconds")
    return [{k: v for k, v in line.items() if k not in timing} for line in content]


@pytest.mark.parametrize("optimizer", ["SGD", "ADAMW"])
@pytest.mark.parametrize("kill_at", [0, 5, 9, 11])
def test_killed_and_resumed_equals_uninterrupted(
    tmp_path: Path, kill_at: int, optimizer: str
) -> None:
    whole = trainer_of(tiny_cfg(tmp_path / "whole", OPTIMIZER=optimizer))
    whole.train()
    cfg = tiny_cfg(tmp_path / "parts", OPTIMIZER=optimizer)
    first = trainer_of(cfg, kill_at=kill_at)
    with pytest.raises(Killed):
        first.train()
    torch.rand(17)  # the new process has other random numbers
    second = trainer_of(cfg, resume=True)
    assert second.start_iter == kill_at // 4 * 4
    second.train()
    assert first.losses + second.losses[kill_at % 4 :] == whole.losses
    assert second.losses == whole.losses[second.start_iter :]
    state, expected = second.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(state[k], expected[k]) for k in expected)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")


@pytest.mark.parametrize("kill_at", [5, 9])
def test_precise_batch_norm_of_a_resumed_run(tmp_path: Path, kill_at: int) -> None:
    def cfg_of(folder: str) -> CfgNode:
        cfg = tiny_cfg(tmp_path / folder)
        cfg.TEST.EVAL_PERIOD = 2
        cfg.TEST.PRECISE_BN.ENABLED = True
        cfg.TEST.PRECISE_BN.NUM_ITER = 3
        return cfg

    whole = trainer_of(cfg_of("whole"))
    whole.train()
    without = trainer_of(tiny_cfg(tmp_path / "without"))
    without.train()
    norm, plain = whole.model.norm, without.model.norm
    assert not torch.equal(norm.running_mean, plain.running_mean)
    with pytest.raises(Killed):
        trainer_of(cfg_of("parts"), kill_at=kill_at).train()
    second = trainer_of(cfg_of("parts"), resume=True)
    second.train()
    assert second.start_iter == kill_at // 4 * 4
    assert second.losses == whole.losses[second.start_iter :]
    state, expected = second.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(state[k], expected[k]) for k in expected)


def test_precise_batch_norm_is_the_mean_over_its_batches(tmp_path: Path) -> None:
    cfg = tiny_cfg(tmp_path, BASE_LR=1e-30)
    cfg.TEST.PRECISE_BN.ENABLED = True
    cfg.TEST.PRECISE_BN.NUM_ITER = 3
    trainer = trainer_of(cfg)
    trainer.train()
    batches = itertools.islice(iter(TinyTrainer.build_train_loader(cfg)), 3)
    with torch.no_grad():
        means = [trainer.model.backbone(torch.stack([d["x"] for d in b])).mean(0) for b in batches]
    torch.testing.assert_close(trainer.model.norm.running_mean, torch.stack(means).mean(0))


def test_a_fresh_start_in_a_used_folder_is_never_mixed_with_the_old_run(tmp_path: Path) -> None:
    trainer_of(tiny_cfg(tmp_path)).train()
    other = {"BASE_LR": 0.02}
    whole = trainer_of(tiny_cfg(tmp_path / "whole", **other))
    whole.train()
    with pytest.raises(Killed):
        trainer_of(tiny_cfg(tmp_path, **other), kill_at=2).train()
    (old,) = tmp_path.glob("previous-*")
    assert len(list(old.glob("model_*.pth"))) == 3 and (old / "last_checkpoint").exists()
    again = trainer_of(tiny_cfg(tmp_path, **other), resume=True)
    assert again.start_iter == 0
    again.train()
    assert again.losses == whole.losses


def test_weights_in_the_folder_of_a_fresh_start(tmp_path: Path) -> None:
    first = trainer_of(tiny_cfg(tmp_path))
    first.train()
    cfg = tiny_cfg(tmp_path)
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    second = trainer_of(cfg)
    assert torch.equal(second.model.head.weight, first.model.head.weight)
    assert len(list(tmp_path.glob("previous-*/model_final.pth"))) == 1


def test_weights_that_cannot_be_read_move_nothing(tmp_path: Path) -> None:
    trainer_of(tiny_cfg(tmp_path)).train()
    cfg = tiny_cfg(tmp_path)
    cfg.MODEL.WEIGHTS = str(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="does not exist"):
        trainer_of(cfg)
    assert (tmp_path / "last_checkpoint").exists() and not list(tmp_path.glob("previous-*"))


def test_resumed_after_the_end_only_evaluates(tmp_path: Path) -> None:
    cfg = tiny_cfg(tmp_path)
    trainer_of(cfg).train()
    again = trainer_of(cfg, resume=True)
    again.train()
    assert again.start_iter == 12 and again.losses == []
    longer = trainer_of(tiny_cfg(tmp_path, MAX_ITER=14), resume=True)
    longer.train()
    assert len(longer.losses) == 2


def test_checkpoints_are_safe_to_read_and_named_by_their_last_iteration(tmp_path: Path) -> None:
    trainer_of(tiny_cfg(tmp_path)).train()
    names = sorted(p.name for p in tmp_path.glob("*.pth"))
    assert names == ["model_0000003.pth", "model_0000007.pth", "model_final.pth"]
    content = torch.load(tmp_path / "model_0000007.pth", weights_only=True)
    assert content["iteration"] == 7


def test_resume_names_the_settings_that_differ(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer_of(tiny_cfg(tmp_path)).train()
    logging.getLogger("panoptic_ext").propagate = True
    trainer_of(tiny_cfg(tmp_path, GAMMA=0.5, MAX_ITER=14), resume=True)
    assert "SOLVER.GAMMA: 0.1 in the checkpoint, 0.5 now" in caplog.text
    assert "SOLVER.MAX_ITER: 12 in the checkpoint, 14 now" in caplog.text


def test_resume_from_a_checkpoint_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    trainer_of(tiny_cfg(tmp_path)).train()
    with pytest.raises(CheckpointError, match="optimizer does not fit"):
        trainer_of(tiny_cfg(tmp_path, BACKBONE_MULTIPLIER=0.1), resume=True)
    content = torch.load(tmp_path / "model_final.pth", weights_only=True)
    content["trainer"] = {"iteration": 3, "hooks": {}, "_trainer": {"optimizer": {}}}  # main's
    torch.save(content, tmp_path / "model_final.pth")
    with pytest.raises(CheckpointError, match="no optimizer, scheduler, data_seed: another train"):
        trainer_of(tiny_cfg(tmp_path), resume=True)
    del content["model"]["head.weight"]
    torch.save(content, tmp_path / "model_final.pth")
    with pytest.raises(CheckpointError, match=r"1 missing.*head.weight is missing"):
        trainer_of(tiny_cfg(tmp_path), resume=True)


class BadTrainer(TinyTrainer):
    """Image 6 of the data makes a loss infinite, on the worker that gets it."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        def mapper(record: dict[str, Any]) -> dict[str, Any]:
            sample = tiny_mapper(record)
            return {**sample, "bad": float("inf") if record["image_id"] == 6 else 0.0}

        return TrainLoader(
            tiny_records(8),
            mapper,
            batch_size=2,
            seed=1,
            aspect_ratio_grouping=False,
            make_sampler=lambda seed: _in_order(),
        )


def _in_order() -> Any:
    from detectron2.data.samplers import TrainingSampler

    return TrainingSampler(8, shuffle=False)


def test_infinite_loss_names_term_iteration_and_image(tmp_path: Path) -> None:
    trainer = BadTrainer(tiny_cfg(tmp_path, CHECKPOINT_PERIOD=2))
    with pytest.raises(
        NonFiniteLossError,
        match=r"not finite at iteration 3, on worker 0: loss_a = inf with images 6 \(6.jpg\), 7",
    ):
        trainer.train()
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    trainer = trainer_of(tiny_cfg(tmp_path))
    run_step = trainer.run_step

    def spoil() -> None:
        run_step()
        if trainer.iter == 7:
            torch.nn.init.constant_(trainer.model.head.weight, float("nan"))

    trainer.run_step = spoil
    with pytest.raises(NonFiniteLossError, match=r"1 parameters .* after iteration 7.*head.weight"):
        trainer.train()
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"


class RaisingTrainer(TinyTrainer):
    """The forward pass of worker 1 fails in one iteration, as Detectron2's proposals do."""

    bad_iter = 0

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        model = super().build_model(cfg)
        forward, iterations = model.forward, itertools.count()

        def forward_or_raise(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            losses = forward(batch)
            if next(iterations) == cls.bad_iter and dist.get_rank() == 1:
                raise FloatingPointError("Predicted boxes or scores contain Inf/NaN. Diverged.")
            return losses

        model.forward = forward_or_raise
        return model


class LateRaisingTrainer(RaisingTrainer):
    bad_iter = 3


def _two_workers(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    make_local_group(2)
    for kind in (BadTrainer, RaisingTrainer, LateRaisingTrainer):
        try:
            kind(tiny_cfg(Path(folder) / "out")).train()
        except NonFiniteLossError as error:
            (Path(folder) / f"{kind.__name__}{rank}").write_text(str(error))
    save_step_of_a_worker(rank, folder)
    save_frozen_step_of_a_worker(rank, folder)
    leave()


@pytest.fixture(scope="module")
def of_two_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workers")
    run_workers(_two_workers, str(folder))
    return folder


@pytest.mark.slow
def test_infinite_loss_of_one_worker_stops_both(of_two_workers: Path) -> None:
    """A worker that cannot compute a loss does not leave the other one waiting."""
    for kind, message in (
        (BadTrainer, "at iteration 1, on worker 0: loss_a = inf with images 4 (4.jpg), 6 (6.jpg)"),
        (
            RaisingTrainer,
            "at iteration 0, on worker 1: Predicted boxes or scores contain Inf/NaN w",
        ),
        (LateRaisingTrainer, "at iteration 3, on worker 1: Predicted boxes or scores contain Inf"),
    ):
        messages = {(of_two_workers / f"{kind.__name__}{rank}").read_text() for rank in range(2)}
        assert len(messages) == 1
        text = messages.pop()
        assert message in text and "on worker 0" not in text.replace(message, "")


@pytest.mark.slow
def test_two_workers_share_the_gradients_of_all_parts(of_two_workers: Path) -> None:
    results = [torch.load(of_two_workers / f"accumulated{rank}.pth") for rank in range(2)]
    (losses, whole), (losses_of_parts, parts) = results[0]
    assert losses_of_parts == pytest.approx(losses, rel=1e-12)
    for name, gradient in whole.items():
        assert (parts[name] - gradient).norm() <= 1e-12 * gradient.norm(), name
        assert torch.equal(parts[name], results[1][1][1][name])


@pytest.mark.slow
def test_two_workers_train_what_is_not_frozen(of_two_workers: Path) -> None:
    results = [torch.load(of_two_workers / f"frozen{rank}.pth") for rank in range(2)]
    assert [finds_unused for _, finds_unused in results] == [False, False]
    for step in range(2):
        gradients = [of_steps[step] for of_steps, _ in results]
        names = [n.removeprefix("module.backbone.") for n in gradients[0] if ".backbone." in n]
        assert {n.partition(".")[0] for n in names} == {"res4", "res5"}  # not stem, res2, res3
        assert any("sem_seg_head" in n for n in gradients[0])
        assert all(torch.equal(gradients[1][n], value) for n, value in gradients[0].items())


def test_metrics_of_iterations_to_come_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 3}\n{"iteration": 7}\n{"itera')
    trim_metrics(str(path), 5)
    assert path.read_text() == '{"iteration": 3}\n'
    trim_metrics(str(path), 0)
    assert not path.exists() and len(list(tmp_path.glob("metrics-before-*.json"))) == 1


def test_several_workers_on_a_cpu_cannot_synchronise_norms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own error comes in the first step and does not name a config key."""

    class Synchronised(TinyTrainer):
        @classmethod
        def build_model(cls, cfg: CfgNode) -> nn.Module:
            model = super().build_model(cfg)
            model.norm = nn.SyncBatchNorm(4)
            return model

    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match=r"1 norms are SyncBN \(norm is .*MODEL.RESNETS.NORM"):
        Synchronised(tiny_cfg(tmp_path))


def test_unknown_feature_names_its_key(tmp_path: Path) -> None:
    cfg = tiny_cfg(tmp_path)
    cfg.MODEL.META_ARCHITECTURE = "PanopticFPN"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res6"]
    with pytest.raises(ConfigError, match=r"MODEL.FPN.IN_FEATURES names the feature 'res6'"):
        Trainer.build_model(cfg)
    cfg.MODEL.RESNETS.DEPTH = 18
    with pytest.raises(ConfigError, match=r"cannot be built: Must set MODEL.RESNETS.RES2_OUT"):
        Trainer.build_model(cfg)


def test_command_line_prints_one_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("error: no config: give --config-file FILE")
    assert main(["--config-file", str(tmp_path / "none.yaml"), "SEED", "1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: config file") and error.count("\n") == 1
