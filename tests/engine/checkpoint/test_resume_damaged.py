"""--resume from a checkpoint with a damaged part names the part and the ways to go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from panoptic_ext.errors import CheckpointError
from tests.tiny.training import TinyTrainer, tiny_cfg


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A checkpoint of two iterations."""
    folder = tmp_path_factory.mktemp("run")
    trainer = TinyTrainer(tiny_cfg(folder, MAX_ITER=2))
    trainer.resume_or_load(resume=False)
    trainer.train()
    return (folder / "model_final.pth").read_bytes()


def resume(folder: Path, content: bytes, damage: Callable[[dict[str, Any]], Any], **solver: Any):
    """Resume from a damaged checkpoint beside a whole one that is older."""
    (folder / "model_0000000.pth").write_bytes(content)
    (folder / "model_0000001.pth").write_bytes(content)
    checkpoint = torch.load(folder / "model_0000001.pth", weights_only=True)
    damage(checkpoint)
    torch.save(checkpoint, folder / "model_0000001.pth")
    (folder / "last_checkpoint").write_text("model_0000001.pth")
    trainer = TinyTrainer(tiny_cfg(folder, MAX_ITER=2, **solver))
    trainer.resume_or_load(resume=True)
    return trainer


def put(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """A damage: the value at a path of keys is replaced, or deleted where it is None."""

    def damage(node: Any) -> None:
        for key in keys[:-1]:
            node = node[key]
        if value is None:
            del node[keys[-1]]
        else:
            node[keys[-1]] = value

    return damage


STATE = ("trainer", "optimizer", "state")
DAMAGES = [
    (put("iteration", value="7"), "iteration is '7', expected a whole number"),
    (put("iteration", value=None), "iteration is None"),
    (put("iteration", value=-1), "iteration is -1, expected a number from 0"),
    (put("iteration", value=10**30), "iteration is 1000.*expected a number from 0"),
    (put("iteration", value=0), "trainer.iteration is 1, its iteration 0, expected the same"),
    (put("trainer", value=[1]), r"trainer is \[1\], expected a dict"),
    (put("trainer", "iteration", value="x"), "trainer.iteration is 'x'"),
    (put("trainer", "data_seed", value=1.5), "trainer.data_seed is 1.5"),
    (put("trainer", "hooks", value=3), "trainer.hooks is 3"),
    (put("trainer", "hooks", "LRScheduler", value="x"), "trainer.hooks.LRScheduler is 'x'"),
    (put("trainer", "scheduler", "last_epoch", value="x"), "trainer.scheduler.last_epoch is 'x'"),
    (put("trainer", "scheduler", "last_epoch", value=None), "scheduler.last_epoch is None"),
    (put("trainer", "scheduler", "base_lrs", value=[0.1]), "base_lrs has 1 values, expected 2"),
    (put("trainer", "optimizer", value="x"), "trainer.optimizer is 'x'"),
    (put("trainer", "optimizer", "state", value=[]), r"trainer.optimizer.state is \[\]"),
    (put("trainer", "optimizer", "param_groups", 0, value=3), r"param_groups.0 is 3"),
    (put("trainer", "optimizer", "param_groups", 0, "lr", value="x"), r"param_groups.0.lr is 'x'"),
    (put("trainer", "optimizer", "param_groups", 0, "params", value=7), "params is 7"),
    (put(*STATE, 0, value=7), "optimizer.state.0 is 7, expected a dict"),
    (
        put(*STATE, 0, "momentum_buffer", value=torch.zeros(3)),
        r"state.0.momentum_buffer is a float",
    ),
    (put(*STATE, 0, "momentum_buffer", value="x"), "state.0.momentum_buffer is 'x'"),
    (put(*STATE, 0, value={"other": 1}), "state.0 has no momentum_buffer"),
    (put("trainer", "rng", value="x"), "trainer.rng is 'x'"),
    (put("trainer", "rng", 0, value=[]), r"trainer.rng.0 is \[\]"),
    (put("trainer", "rng", 0, "numpy", value=None), "trainer.rng.0 has no numpy"),
    (put("trainer", "rng", 0, "torch", value=torch.zeros(2)), "rng.0.torch is a float32 tensor"),
    (
        put("trainer", "rng", 0, "torch", value=torch.zeros(5056, dtype=torch.uint8)),
        "trainer.rng cannot be used .RuntimeError",
    ),
    (put("trainer", "rng", 0, "python", value=[3, 4]), "rng.0.python has 2 values, expected 3"),
    (put("trainer", "history", value=[1]), r"trainer.history is \[1\]"),
    (put("trainer", "history", "total_loss", value=["x"]), "history.total_loss.0 is 'x'"),
    (put("panoptic_ext", value="x"), "panoptic_ext is 'x', expected a dict"),
    (put("panoptic_ext", "config", value=[1]), r"panoptic_ext.config is \[1\], expected text"),
    (put("panoptic_ext", "config", value="[1, 2]"), r"panoptic_ext.config is \[1, 2\], expected a"),
    (put("panoptic_ext", "config", value="7"), "panoptic_ext.config is 7, expected a dict"),
    (
        put("panoptic_ext", "config", value="a: !!python/object/apply:os.getcwd []"),
        "panoptic_ext.config is no plain YAML .*python/object/apply",
    ),
    (put("panoptic_ext", "config", value="[" * 1000), "panoptic_ext.config is no plain YAML"),
    (put("panoptic_ext", "config", value="a: " + "9" * 6000), "panoptic_ext.config is no plain"),
    (put("panoptic_ext", "versions", value=7), "panoptic_ext.versions is 7"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_part_is_named_with_the_way_out(
    tmp_path: Path, content: bytes, damage: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        resume(tmp_path, content, damage)
    text = str(caught.value)
    assert text.startswith(f"cannot resume from {tmp_path / 'model_0000001.pth'}: its ")
    assert "move this file away, and --resume goes on from model_0000000.pth" in text
    assert f"MODEL.WEIGHTS {tmp_path / 'model_0000001.pth'}" in text
    assert len(text) < 600 + 2 * len(str(tmp_path))


def test_the_advice_of_the_error_works(tmp_path: Path, content: bytes) -> None:
    damage = put("iteration", value="7")
    with pytest.raises(CheckpointError):
        resume(tmp_path, content, damage)
    cfg = tiny_cfg(tmp_path, MAX_ITER=2)
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_0000001.pth")
    (tmp_path / "model_0000001.pth").rename(tmp_path / "aside.pth")
    older = TinyTrainer(cfg)
    older.resume_or_load(resume=True)
    assert older.start_iter == 2
    (tmp_path / "aside.pth").rename(tmp_path / "model_0000001.pth")
    anew = TinyTrainer(cfg)
    anew.resume_or_load(resume=False)
    assert anew.start_iter == 0
    assert torch.equal(anew.model.head.weight, older.model.head.weight)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (put("trainer", value=None), "its trainer is missing: another program wrote it"),
        (put("trainer", value={"iteration": 1}), "no optimizer, scheduler, data_seed"),
    ],
)
def test_a_checkpoint_of_another_program(
    tmp_path: Path, content: bytes, damage: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        resume(tmp_path, content, damage)
    assert "To go on, start anew from its weights" in str(caught.value)


def test_another_optimizer_is_named_without_blaming_the_file(
    tmp_path: Path, content: bytes
) -> None:
    with pytest.raises(
        CheckpointError,
        match=r"trainer.optimizer has no betas: it is of another kind than this run's \(AdamW\)",
    ) as caught:
        resume(tmp_path, content, lambda checkpoint: None, OPTIMIZER="ADAMW")
    assert "resume with the first run's config (config.yaml" in str(caught.value)
    assert "move this file away" not in str(caught.value)


def test_a_checkpoint_without_fingerprint_is_resumed(tmp_path: Path, content: bytes) -> None:
    assert resume(tmp_path, content, put("panoptic_ext", value=None)).start_iter == 2


def test_evaluation_needs_no_part_but_the_model(tmp_path: Path, content: bytes) -> None:
    from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer

    with pytest.raises(CheckpointError):
        resume(tmp_path, content, put("trainer", value="x"))
    model = TinyTrainer.build_model(tiny_cfg(tmp_path))
    Checkpointer(model, str(tmp_path)).resume()
