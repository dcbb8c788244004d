"""Files of safetensors, files in parts and folders of save_pretrained as MODEL.WEIGHTS."""

import json

import pytest
import torch
from torch import nn

from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.errors import CheckpointError

safetensors = pytest.importorskip("safetensors.torch", reason="the files are of safetensors")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def load(path) -> dict:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    Checkpointer(model).load(str(path), strict=True)
    return model.state_dict()


def check(path, model) -> None:
    found = load(path)
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())


def write_parts(folder, state, *, suffix="safetensors") -> None:
    """Two files and their index, as save_pretrained writes them for large models."""
    names = sorted(state)
    places = {}
    for i, part in enumerate((names[:2], names[2:])):
        name = f"model-0000{i + 1}-of-00002.{suffix}"
        safetensors.save_file({n: state[n] for n in part}, folder / name)
        places |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"model.{suffix}.index.json").write_text(json.dumps(index))


def test_a_file_and_its_folder(tmp_path, model):
    safetensors.save_file(model.state_dict(), tmp_path / "model.safetensors")
    check(tmp_path / "model.safetensors", model)
    check(tmp_path, model)


def test_a_folder_of_torchs_file(tmp_path, model):
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    check(tmp_path, model)


def test_a_file_in_parts(tmp_path, model):
    write_parts(tmp_path, model.state_dict())
    check(tmp_path, model)
    check(tmp_path / "model.safetensors.index.json", model)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors does not exist"):
        load(tmp_path)
    safetensors.save_file({"x": torch.zeros(1)}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="2 tensors are not in the files that it names"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="no index of files with weights"):
        load(tmp_path)


def test_a_damaged_file(tmp_path, model):
    path = tmp_path / "model.safetensors"
    safetensors.save_file(model.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="damaged or no file of safetensors"):
        load(path)


def test_folders_without_weights(tmp_path):
    with pytest.raises(CheckpointError, match=r"without weights.*model\.safetensors"):
        load(tmp_path)
    (tmp_path / "model_final.pth").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"take a file in it, such as model_final\.pth"):
        load(tmp_path)
