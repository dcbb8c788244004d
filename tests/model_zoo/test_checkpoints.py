"""Weights of entries: fetched from a server, read from files, verified, and loaded into models."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2 import model_zoo as detectron2_zoo
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.utils.file_io import PathManager

from panoptic_ext import add_panoptic_ext_config, model_zoo
from panoptic_ext.config.shipped import shipped_config
from panoptic_ext.errors import CheckpointError, ConfigError, DownloadError
from panoptic_ext.model_zoo import checkpoints, licences
from panoptic_ext.model_zoo.entry import ZooEntry
from tests.tiny.file_server import FileServer
from tests.tiny.finished_run import NAME as DATA_SET
from tests.tiny.transformers_models import save_tiny
from tests.tiny.zoo import changed

NAME = "tiny_street"


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "model_final.pth", weights_only=True)["model"]


def test_get_downloads_once_and_gives_the_trained_model(
    served: ZooEntry, zoo_run: Path, own_zoo: Path, file_server: FileServer
) -> None:
    assert checkpoints.cached_file(served) == ""
    model = model_zoo.get(NAME)
    assert model.training, "as Detectron2's get"
    expected = weights_of(zoo_run)
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    path = model_zoo.get_checkpoint(NAME, progress=False)
    assert path == str(own_zoo / "zoo" / "tiny_street.pth") == checkpoints.cached_file(served)
    assert len(file_server.requests) == 1
    assert MetadataCatalog.get(DATA_SET).thing_classes == ["disc", "grass", "sky"]


def test_detectron2s_functions_with_a_small_entry(served: ZooEntry, zoo_run: Path) -> None:
    cfg = detectron2_zoo.get_config(NAME, trained=True)
    assert (
        f"zoo://{NAME}" == cfg.MODEL.WEIGHTS and detectron2_zoo.get_config(NAME).MODEL.WEIGHTS == ""
    )
    assert detectron2_zoo.get_checkpoint_url(NAME) == served.address
    assert detectron2_zoo.get_config_file(NAME) == os.path.join(served.folder, "config.yaml")
    trained = detectron2_zoo.get(NAME, trained=True, device="cpu")
    expected = weights_of(zoo_run)
    assert trained.training
    assert all(torch.equal(value, expected[key]) for key, value in trained.state_dict().items())
    fresh = detectron2_zoo.get(NAME).state_dict()
    assert not all(torch.equal(value, expected[key]) for key, value in fresh.items())


def test_the_address_in_the_path_manager(served: ZooEntry, own_zoo: Path) -> None:
    address = f"zoo://{NAME}"
    assert PathManager.exists(address) and PathManager.isfile(address)
    assert not PathManager.exists("zoo://none")
    local = PathManager.get_local_path(address)
    assert local == str(own_zoo / "zoo" / "tiny_street.pth")
    with PathManager.open(address, "rb") as stream:
        assert stream.read() == Path(local).read_bytes()


def test_detectron2s_own_classes_take_the_address(served: ZooEntry, zoo_run: Path) -> None:
    cfg = detectron2_zoo.get_config(NAME, trained=True)
    predictor = DefaultPredictor(cfg)
    expected = weights_of(zoo_run)
    for key, value in predictor.model.state_dict().items():
        assert torch.equal(value, expected[key])
    output = predictor(np.full((48, 64, 3), 90, np.uint8))
    assert output["panoptic_seg"][0].shape == (48, 64)


def test_another_hash_is_refused(served: ZooEntry, own_zoo: Path) -> None:
    changed(served, sha256="0" * 64)
    with pytest.raises(DownloadError, match=r"sha256 .*, expected 0000"):
        model_zoo.get_checkpoint(NAME, progress=False)
    assert checkpoints.cached_file(model_zoo.info(NAME)) == ""


def test_verify(served: ZooEntry, own_zoo: Path) -> None:
    with pytest.raises(CheckpointError, match="zoo get tiny_street` fetches it"):
        checkpoints.verify(served)
    path = Path(model_zoo.get_checkpoint(NAME, progress=False))
    assert checkpoints.verify(served) == f"good, the sha256 of the entry ({path})"
    unknown = dataclasses.replace(served, sha256="")
    assert checkpoints.verify(unknown) == f"good, as recorded at its download ({path})"
    os.remove(f"{path}.sha256")
    assert "no hash of it is known" in checkpoints.verify(unknown)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DownloadError, match="it is damaged, or another file"):
        checkpoints.verify(served)


def test_a_file_beside_the_entry(tiny_entry: ZooEntry) -> None:
    model_zoo.add(tiny_entry.path)
    path = os.path.join(tiny_entry.folder, f"{NAME}.pth")
    assert model_zoo.get_checkpoint(NAME) == path
    assert model_zoo.get_checkpoint_url(NAME) == f"zoo://{NAME}"
    assert checkpoints.verify(tiny_entry).startswith("good, the sha256 of the entry")
    content = bytearray(Path(path).read_bytes())
    content[-1] ^= 1
    Path(path).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{path} has another sha256 than"):
        checkpoints.verify(tiny_entry)
    Path(path).write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=r"has \d+ bytes, expected \d+ .* copy it again"):
        model_zoo.get_checkpoint(NAME)
    os.remove(path)
    with pytest.raises(CheckpointError, match="does not exist; put it there, or correct"):
        model_zoo.get_checkpoint(NAME)


def test_a_model_of_the_hub_has_no_file(tiny_entry: ZooEntry) -> None:
    changed(tiny_entry, weights={"hub": "nobody/nothing"}, sha256=None, size=None)
    for zoo, error in ((model_zoo, ConfigError), (detectron2_zoo, RuntimeError)):
        with pytest.raises(error, match="transformers reads them from nobody/nothing"):
            zoo.get_checkpoint_url(NAME)
    assert checkpoints.verify(model_zoo.info(NAME)).startswith("kept by huggingface_hub")


# The licence is said once

SAID = "may not be used commercially: their licence is CC BY-NC 4.0"


def said(caplog: pytest.LogCaptureFixture) -> int:
    count = sum(SAID in record.getMessage() for record in caplog.records)
    caplog.clear()
    return count


def test_a_licence_without_commercial_use_is_said_at_the_first_use(
    served: ZooEntry, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING, logger="panoptic_ext")
    model_zoo.get_checkpoint(NAME, progress=False)
    assert said(caplog) == 0
    entry = changed(served, commercial_use=False, licence="CC BY-NC 4.0")
    for expected in (1, 0):
        model_zoo.get_checkpoint(NAME, progress=False)
        assert said(caplog) == expected
    # The next process finds the note in the cache, and says it again where that is gone.
    monkeypatch.setattr(licences, "_told", set())
    model_zoo.get_checkpoint(NAME, progress=False)
    assert said(caplog) == 0
    os.remove(licences.notice_file(entry))
    model_zoo.get_checkpoint(NAME, progress=False)
    assert said(caplog) == 1


def test_the_licence_is_not_noted_before_the_weights_have_come(
    served: ZooEntry, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING, logger="panoptic_ext")
    entry = changed(served, commercial_use=False, licence="CC BY-NC 4.0", sha256="0" * 64)
    for _ in range(2):
        monkeypatch.setattr(licences, "_told", set())
        with pytest.raises(DownloadError):
            model_zoo.get_checkpoint(NAME, progress=False)
        assert said(caplog) == 1
    assert not os.path.exists(licences.notice_file(entry))


def test_a_cache_that_cannot_be_written_says_it_in_every_process(
    tiny_entry: ZooEntry, own_zoo: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own_zoo.write_text("a file where the cache should be")
    changed(tiny_entry, commercial_use=False, licence="CC BY-NC 4.0")
    caplog.set_level(logging.WARNING, logger="panoptic_ext")
    for expected in (1, 0):
        model_zoo.get_checkpoint(NAME)
        assert said(caplog) == expected


# Models of transformers


@pytest.fixture
def of_transformers(tmp_path: Path) -> ZooEntry:
    """A tiny random DETR, saved beside its entry."""
    pytest.importorskip("transformers", minversion="4.49", reason="the hf extra is not installed")
    folder = tmp_path / "tiny_detr"
    save_tiny("detr", folder / "saved", ("disc", "grass", "sky"))
    content = {
        "name": "tiny_detr",
        "task": "panoptic",
        "data_set": "of_transformers_val",
        "classes": [{"name": n, "isthing": n == "disc"} for n in ("disc", "grass", "sky")],
        "config": "tiny.yaml",
        "weights": {"hub": "saved"},
        "licence": "MIT",
        "commercial_use": True,
        "source": "tests",
    }
    (folder / "tiny_detr.yaml").write_text(yaml.safe_dump(content))
    (folder / "tiny.yaml").write_text(
        f"_BASE_: {shipped_config('common/transformers/Base-TransformersPanoptic.yaml')}\n"
        "DATASETS: {TEST: [of_transformers_val]}\n"
    )
    model_zoo.add(folder)
    return model_zoo.info("tiny_detr")


def test_a_model_of_transformers_reads_its_own_weights(of_transformers: ZooEntry) -> None:
    folder = os.path.join(of_transformers.folder, "saved")
    cfg = model_zoo.get_config("tiny_detr")
    assert ("", folder) == (cfg.MODEL.WEIGHTS, cfg.MODEL.TRANSFORMERS.NAME_OR_PATH)
    assert model_zoo.get_checkpoint("tiny_detr") == folder and checkpoints.is_here(of_transformers)
    first, second = (model_zoo.get("tiny_detr").state_dict() for _ in range(2))
    random = model_zoo.get("tiny_detr", trained=False).state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert not all(torch.equal(value, random[key]) for key, value in first.items())


def test_its_licence_is_said_with_its_config(
    of_transformers: ZooEntry, caplog: pytest.LogCaptureFixture
) -> None:
    entry = changed(of_transformers, commercial_use=False, licence="CC BY-NC 4.0")
    caplog.set_level(logging.WARNING, logger="panoptic_ext")
    for trained, expected in ((False, 0), (True, 1), (True, 0)):
        model_zoo.get_config("tiny_detr", trained=trained)
        assert said(caplog) == expected
    assert os.path.exists(licences.notice_file(entry))


def test_a_config_file_that_cannot_be_written(of_transformers: ZooEntry, own_zoo: Path) -> None:
    own_zoo.write_text("a file where the cache should be")
    with pytest.raises(ConfigError, match=r"tiny_detr\.yaml cannot be written: .* FVCORE_CACHE"):
        detectron2_zoo.get_config_file("tiny_detr")


def test_its_config_file_holds_all(of_transformers: ZooEntry) -> None:
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.merge_from_file(detectron2_zoo.get_config_file("tiny_detr"))
    assert cfg.MODEL.META_ARCHITECTURE == "TransformersPanoptic"
    assert os.path.join(of_transformers.folder, "saved") == cfg.MODEL.TRANSFORMERS.NAME_OR_PATH
