"""Checkpoints: written atomically, found after a kill, read safely, loaded or refused."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import subprocess
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.engine.checkpoint.read_weights import check_hash
from panoptic_ext.errors import CheckpointError
from tests.tiny.training import PanopticExtTestTiny


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return PanopticExtTestTiny()


def fill(model: nn.Module, value: float) -> None:
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)


def value_of(model: nn.Module) -> float:
    return model.head.weight[0, 0].item()


def save_two(model: nn.Module, folder: Path) -> Checkpointer:
    checkpointer = Checkpointer(model, str(folder))
    for i in (1, 2):
        fill(model, float(i))
        checkpointer.save(f"model_000000{i}", iteration=i)
        os.utime(folder / f"model_000000{i}.pth", (i, i))
    return checkpointer


def test_versions_of_modules_are_in_the_file(tmp_path: Path) -> None:
    """Other code that reads the file relies on these versions."""

    class Versioned(nn.Linear):
        _version = 2

    Checkpointer(nn.Sequential(Versioned(1, 1)), str(tmp_path)).save("a")
    weights = torch.load(tmp_path / "a.pth", weights_only=True)["model"]
    assert weights._metadata["0"] == {"version": 2}


def test_prune_keeps_the_newest_and_whatever_is_not_periodic(tmp_path):
    checkpointer = Checkpointer(torch.nn.Linear(1, 1), str(tmp_path))
    for name in ("model_0000009", "model_0000019", "model_0000029", "model_final", "model_best"):
        checkpointer.save(name)
    checkpointer.prune(2)
    left = {path.name for path in tmp_path.glob("*.pth")}
    assert left == {f"model_{n}.pth" for n in ("0000019", "0000029", "final", "best")}


def test_last_one_is_found(model: nn.Module, tmp_path: Path) -> None:
    checkpointer = save_two(model, tmp_path)
    fill(model, 0.0)
    assert checkpointer.resume()["iteration"] == 2
    assert value_of(model) == 2.0
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "no tag", "bad tag"])
def test_damage_falls_back_to_the_newest_readable(
    model: nn.Module, tmp_path: Path, damage: str
) -> None:
    checkpointer = save_two(model, tmp_path)
    newest = tmp_path / "model_0000002.pth"
    content = newest.read_bytes()
    if damage in ("truncated", "empty"):
        newest.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    elif damage == "missing":
        newest.unlink()
    elif damage == "no tag":
        (tmp_path / "last_checkpoint").unlink()
    else:
        (tmp_path / "last_checkpoint").write_text("nonsense.pth")
    assert checkpointer.has_checkpoint()
    expected = 2 if "tag" in damage else 1
    assert checkpointer.resume()["iteration"] == expected
    assert value_of(model) == expected


def test_nothing_readable(model: nn.Module, tmp_path: Path) -> None:
    checkpointer = save_two(model, tmp_path)
    for path in tmp_path.glob("*.pth"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read: .*0 bytes"):
        checkpointer.resume()


def test_kill_while_writing_leaves_the_old_file(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = save_two(model, tmp_path)
    ended = subprocess.Popen(["true"])
    ended.wait()
    leftover = tmp_path / f"model_0000003.pth.tmp-{ended.pid}"
    leftover.write_bytes(b"half")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"No space left.*untouched"):
        checkpointer.save("model_0000002", iteration=9)
    assert checkpointer.resume()["iteration"] == 2
    assert not list(tmp_path.glob("*.tmp-*"))


def test_an_earlier_run_is_set_aside(model: nn.Module, tmp_path: Path) -> None:
    checkpointer = save_two(model, tmp_path)
    (tmp_path / "model_mine.pth").write_text("not of a run")
    (tmp_path / "config.yaml").write_text("of the run")
    first = Path(checkpointer.set_aside())
    assert first.parent == tmp_path and first.name.startswith("previous-")
    names = {"model_0000001.pth", "model_0000002.pth", "last_checkpoint", "config.yaml"}
    assert {p.name for p in first.iterdir()} == names
    assert {p.name for p in tmp_path.iterdir()} == {first.name, "model_mine.pth"}
    assert not checkpointer.has_checkpoint() and checkpointer.set_aside() == ""
    save_two(model, tmp_path)
    second = Path(checkpointer.set_aside())
    assert second != first and {p.name for p in first.iterdir()} == names


@pytest.mark.parametrize("moves", range(4))
def test_kill_while_an_earlier_run_is_set_aside(
    model: nn.Module, tmp_path: Path, moves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = save_two(model, tmp_path)
    replace, done = os.replace, []

    def replace_some(old: str, new: str) -> None:
        if len(done) == moves:
            raise KeyboardInterrupt
        done.append(new)
        replace(old, new)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(os, "replace", replace_some)
        checkpointer.set_aside()
    assert checkpointer.has_checkpoint() == (moves < 2)
    assert moves >= 2 or checkpointer.resume()["iteration"] == 2


class Renamer(nn.Module):
    """A module whose parameters had other names in earlier versions."""

    def __init__(self) -> None:
        super().__init__()
        self.new = nn.Linear(2, 3)

    @staticmethod
    def adapt_state_dict(state_dict: dict[str, Any], prefix: str) -> None:
        for name in ("weight", "bias"):
            if f"{prefix}old.{name}" in state_dict:
                state_dict[f"{prefix}new.{name}"] = state_dict.pop(f"{prefix}old.{name}")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_old_names_with_other_shapes_are_reported(tmp_path: Path, prefix: str) -> None:
    model = nn.Sequential(OrderedDict(part=Renamer()))
    state = {f"{prefix}part.old.weight": torch.ones(3, 2), f"{prefix}part.old.bias": torch.ones(3)}
    torch.save({"model": dict(state)}, tmp_path / "fits.pth")
    Checkpointer(model).load(str(tmp_path / "fits.pth"), strict=True)
    assert bool((model.part.new.weight == 1).all())
    state[f"{prefix}part.old.weight"] = torch.ones(5, 2)
    torch.save({"model": state}, tmp_path / "other.pth")
    Checkpointer(model).load(str(tmp_path / "other.pth"))
    with pytest.raises(
        CheckpointError,
        match=r"loaded 1 of 2 .* 1 of other shape.*part.new.weight is \(5, 2\), .* \(3, 2\)",
    ):
        Checkpointer(model).load(str(tmp_path / "other.pth"), strict=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>log in</html>", "is an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"PK\x03\x04" + b"x" * 99, "is truncated"),
        (b"something else", "cannot be read"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 99, "cannot be read"),
    ],
)
@pytest.mark.parametrize("name", ["weights.pth", "weights.pkl"])
def test_a_file_that_is_no_checkpoint_is_an_error(
    model: nn.Module, tmp_path: Path, content: bytes, message: str, name: str
) -> None:
    (tmp_path / name).write_bytes(content)
    checkpointer = Checkpointer(model)
    with pytest.raises(CheckpointError, match=message):
        checkpointer.load(str(tmp_path / name))
    torch.save({"model": model.state_dict()}, tmp_path / "good.pth")
    checkpointer.load(str(tmp_path / "good.pth"))  # a failed load leaves it usable


def test_missing(model: nn.Module) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        Checkpointer(model).load("/nonexistent/weights.pth")
    with pytest.raises(CheckpointError, match=r"MODEL.WEIGHTS is empty"):
        Checkpointer(model).load("", strict=True)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["evil.pkl", "evil.pth"])
def test_code_in_a_file_is_not_run(model: nn.Module, tmp_path: Path, name: str) -> None:
    proof = tmp_path / "executed"
    content = {"model": model.state_dict(), "__author__": Evil(proof)}
    if name.endswith("pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"found [\w.]+\).*MODEL.ALLOW_PICKLE True"):
        Checkpointer(model).load(str(tmp_path / name))
    assert not proof.exists()
    Checkpointer(model, allow_pickle=True).load(str(tmp_path / name))
    assert proof.exists()


@pytest.mark.parametrize("kind", ["arrays", "tensors", "caffe2"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_model_zoo_pickles_are_read(
    model: nn.Module, tmp_path: Path, kind: str, protocol: int
) -> None:
    fill(model, 3.0)
    weights: Any = OrderedDict(model.state_dict())
    if kind != "tensors":
        weights = {k: v.numpy() for k, v in weights.items()}
    content = {"model": weights, "__author__": "zoo"}
    if kind == "caffe2":
        content = {"blobs": {**weights, "head.weight_momentum": np.zeros(3)}}
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    fill(model, 0.0)
    Checkpointer(model).load(str(path))
    assert value_of(model) == 3.0


def test_plain_state_dict_and_pycls(model: nn.Module, tmp_path: Path) -> None:
    fill(model, 4.0)
    torch.save(model.state_dict(), tmp_path / "plain.pth")
    torch.save({"model_state": model.state_dict()}, tmp_path / "pycls.pyth")
    for name in ("plain.pth", "pycls.pyth"):
        fill(model, 0.0)
        Checkpointer(model).load(str(tmp_path / name))
        assert value_of(model) == 4.0


def test_weights_that_do_not_fit_are_reported(
    model: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = dict(model.state_dict())
    state["head.weight"] = torch.zeros(2, 4)
    state["extra"] = state.pop("backbone.bias")
    path = str(tmp_path / "other.pth")
    torch.save({"model": state}, path)
    Checkpointer(model).load(path)  # training may go on from part of the weights
    with pytest.raises(
        CheckpointError,
        match=r"loaded 7 of 9 .* 1 missing, 1 of other shape, 1 unexpected.*head.weight is \(2, 4\)"
        r", the model's is \(1, 4\); backbone.bias is missing",
    ):
        Checkpointer(model).load(path, strict=True)


def test_nothing_fits(model: nn.Module, tmp_path: Path) -> None:
    torch.save({"model": {"other.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"loaded 0 of"):
        Checkpointer(model).load(str(tmp_path / "other.pth"))
    torch.save({"model": {1: torch.zeros(3), "a": torch.zeros(3)}}, tmp_path / "numbers.pth")
    with pytest.raises(CheckpointError, match=r"expected a dict of tensors by parameter name"):
        Checkpointer(model).load(str(tmp_path / "numbers.pth"))
    torch.save({"model": [1, 2]}, tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match=r"holds a list, expected a dict of tensors"):
        Checkpointer(model).load(str(tmp_path / "list.pth"))


def test_checksum_in_the_name(tmp_path: Path) -> None:
    path = tmp_path / "download"
    path.write_bytes(b"weights")
    good = hashlib.sha256(b"weights").hexdigest()[:8]
    check_hash(str(path), f"http://x/resnet50-{good}.pth")
    check_hash(str(path), "http://x/resnet50.pth")
    with pytest.raises(CheckpointError, match=r"sha256 begins with .* expected 0676ba61"):
        check_hash(str(path), "http://x/resnet50-0676ba61.pth")


@pytest.mark.parametrize("date", ["20240101", "20240229", "2024010123", "20240101235959"])
def test_a_date_in_the_name_is_no_hash_and_the_hash_is_logged(
    tmp_path: Path, date: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "download"
    path.write_bytes(b"weights")
    with caplog.at_level("WARNING", "panoptic_ext"):
        check_hash(str(path), f"http://x/run-{date}.pth")
    assert hashlib.sha256(b"weights").hexdigest() in caplog.text


@pytest.mark.parametrize("digits", ["12345678", "20241301", "20230229", "19990101", "202401019"])
def test_digits_that_are_no_date_are_a_hash(tmp_path: Path, digits: str) -> None:
    """One hash in 43 is all digits, and was not checked."""
    path = tmp_path / "download"
    path.write_bytes(b"weights")
    with pytest.raises(CheckpointError, match=rf"expected {digits}.*If these digits are no hash"):
        check_hash(str(path), f"http://x/resnet50-{digits}.pth")
    path.write_bytes(b"47")  # its sha256 begins with eight digits
    check_hash(str(path), f"http://x/a-{hashlib.sha256(b'47').hexdigest()[:8]}.pth")
