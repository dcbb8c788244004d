"""Every way to name a model: runs, checkpoints, configs, zoo entries, and names that are wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2 import model_zoo as detectron2_zoo
from detectron2.modeling import build_model
from PIL import Image

from panoptic_ext import load, model_zoo
from panoptic_ext.errors import CheckpointError, ConfigError, DownloadError
from panoptic_ext.model_zoo import catalog
from panoptic_ext.model_zoo.entry import ZooEntry
from panoptic_ext.prediction.model_source import find_model, source_name
from panoptic_ext.prediction.predictor import Predictor, load_run_cfg
from tests.tiny.finished_run import picture
from tests.tiny.transformers_models import save_tiny

pytestmark = pytest.mark.usefixtures("clean_catalogs")

DETECTRON2 = "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml"


@pytest.fixture
def run(zoo_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, moved away from the folder that its config names."""
    return Path(shutil.copytree(zoo_run, tmp_path / "output" / "street"))


def test_a_run_is_loaded_from_any_folder(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = str(run / "model_final.pth")
    for source in ("output/street", run, "output/street/config.yaml", run / "model_final.pth"):
        cfg, found = find_model(source)
        assert Path(found).resolve() == Path(weights).resolve() and str(run) == cfg.OUTPUT_DIR
        assert source_name(source) == "street"
    monkeypatch.chdir("/")
    model = load(run)
    assert model.classes == ["disc", "grass", "sky"] and model.predictor.weights == weights
    assert "3 classes, on cpu" in repr(model) and model.cfg.MODEL.DEVICE == "cpu"
    image = np.asarray(picture(3, 50, 70))
    result, outputs = model(image, channels="RGB", keep_outputs=True), model.predictor(image)
    assert (result.height, result.width) == (50, 70) and "sem_seg" in result.outputs
    direct = Predictor(load_run_cfg(str(run)))(image[:, :, ::-1])["panoptic_seg"]
    assert torch.equal(result.panoptic_seg, direct[0])
    assert outputs["panoptic_seg"][0].shape == (50, 70)


def test_an_entry_and_the_run_that_it_was_made_of_are_loaded_in_one_process(
    run: Path, tiny_entry: ZooEntry
) -> None:
    model_zoo.add(tiny_entry.path)
    first = load("tiny_street")
    assert load(run).classes == first.classes == load("tiny_street").classes


def test_an_entry_is_loaded_from_its_file_or_folder(
    run: Path, tiny_entry: ZooEntry, tmp_path: Path
) -> None:
    for source in (tiny_entry.path, tiny_entry.folder):
        assert find_model(source)[1] == "zoo://tiny_street"
    # A config is no entry, and of several entries in a folder none is chosen.
    assert find_model(f"{tiny_entry.folder}/config.yaml", weights="w")[0].OUTPUT_DIR
    shutil.copy(tiny_entry.path, f"{tiny_entry.folder}/second.yaml")
    with pytest.raises(ConfigError, match="no weights to predict with"):
        find_model(tiny_entry.folder)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", 1.5])
def test_a_device_that_is_none_is_named(run: Path, device: object) -> None:
    with pytest.raises(ConfigError, match=rf"device is '?{device}'?, which torch does not know"):
        find_model(run, device=device)


def test_given_weights_options_and_devices_win(run: Path, tmp_path: Path) -> None:
    other = shutil.copy(run / "model_final.pth", tmp_path / "other.pth")
    cfg, found = find_model(run, weights=other, opts=["INPUT.MIN_SIZE_TEST", 32])
    assert found == str(other) and cfg.INPUT.MIN_SIZE_TEST == 32
    assert find_model(run, opts=["MODEL.WEIGHTS", other])[1] == str(other)
    assert find_model(run, device=torch.device("cpu"))[0].MODEL.DEVICE == "cpu"
    assert find_model(load_run_cfg(str(run)))[1].endswith("model_final.pth")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"'cuda:0', but torch finds no CUDA.*'cpu'"):
            find_model(run, device="cuda:0")
    with pytest.raises(ConfigError, match=r"no config.yaml beside it.*weights=.*--weights"):
        find_model(other)
    with pytest.raises(ConfigError, match=r"runs below it: .*output/street$"):
        find_model(tmp_path)


def test_an_entry_of_the_zoo_has_its_own_weights(
    tiny_entry: ZooEntry, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a checkpoint that lies in the config's OUTPUT_DIR by chance."""
    model_zoo.add(Path(tiny_entry.path))
    monkeypatch.chdir(tmp_path)
    assert find_model("tiny_street", opts=["OUTPUT_DIR", run])[1] == "zoo://tiny_street"
    model = load("zoo://tiny_street")
    assert model.classes == ["disc", "grass", "sky"]
    assert model(picture()) == load(run)(picture())


def test_detectron2s_names_have_its_weights_and_one_numbering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = detectron2_zoo.get_checkpoint_url(DETECTRON2)
    for name in (DETECTRON2, DETECTRON2.removesuffix(".yaml")):
        assert find_model(name)[1] == address
    small = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
    small += ["MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", "1", "INPUT.MIN_SIZE_TEST", "32"]
    cfg, _ = find_model(DETECTRON2, weights="none", opts=small)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "random.pth")
    model = load(DETECTRON2, weights=tmp_path / "random.pth", opts=small)
    assert len(model.classes) == 133 and model.classes[::132] == ["person", "rug"]
    result = model(picture())
    assert len(result) and all(s.name == model.classes[s.class_id] for s in result)
    # The outputs of the model itself number stuff apart: its class 0 is "things".
    _, infos = model.predictor(np.asarray(picture())[:, :, ::-1])["panoptic_seg"]
    stuff = model.predictor.metadata.stuff_classes
    names = [stuff[i["category_id"]] for i in infos if not i["isthing"]]
    assert names == [s.name for s in result if not s.isthing]


def test_a_shipped_config_has_the_weights_that_were_trained_with_it() -> None:
    config = "coco/mask2former/mask2former_R50_bs16_50ep.yaml"
    for name in (config, f"configs/{config}", config.removesuffix(".yaml")):
        cfg, weights = find_model(name)
        assert weights == "zoo://mask2former_R50_coco" == cfg.MODEL.WEIGHTS
    assert find_model("mask2former_R50_coco.yaml")[1] == weights


def test_a_folder_of_transformers_is_a_model(tmp_path: Path) -> None:
    save_tiny("detr", tmp_path / "detr", ["person", "sky", "dog"])
    cfg, weights = find_model(tmp_path / "detr")
    assert weights == "" and str(tmp_path / "detr") == cfg.MODEL.TRANSFORMERS.NAME_OR_PATH
    model = load(tmp_path / "detr")
    result = model(picture())
    assert (result.height, result.width) == (48, 64)
    assert result.class_names == model.classes == ["person", "sky", "dog"]


def test_names_of_the_hub() -> None:
    """One that the zoo has is its entry, with the classes of the data set; others by themselves."""
    for name in ("some-one/some-model", "some-one/mask2former-swin-small-coco"):
        cfg, weights = find_model(name)
        assert weights == "" and name == cfg.MODEL.TRANSFORMERS.NAME_OR_PATH
        assert not cfg.DATASETS.TRAIN
    hub = [entry for entry in catalog.entries().values() if entry.weights.kind == "hub"]
    cfg, weights = find_model(hub[0].weights.value)
    assert weights == "" and hub[0].data_set in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mask2former_R5_coco", "'mask2former_R50_coco'"),
        ("shapes/panoptic_fpn/panoptic_fpn_R18_shape.yaml", "R18_shapes.yaml'"),
        ("coco/mask2former_R50", None),
        ("outptu", "'output'"),
        ("output/stret", "'output/street'"),
    ],
)
def test_a_wrong_name_gets_the_nearest_one(
    name: str, hint: str | None, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ConfigError, DownloadError, CheckpointError)) as caught:
        load(name)
    message = str(caught.value)
    assert name in message and "\n" not in message
    if hint:
        assert "did you mean" in message and hint in message
        assert "panoptic-ext zoo list" in message and f"{tmp_path}/{name}" in message


def test_a_run_that_is_not_there_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"unknown model 'output/demo'.*{tmp_path}/output/demo"):
        find_model("output/demo")
    with pytest.raises(ConfigError, match=f"there is no folder {tmp_path}/runs/demo; on the hub"):
        load("runs/demo")


def test_the_precision_of_training_is_no_matter_of_predicting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cfg, _ = find_model("mask2former_R50_coco", device="cpu")
    assert not cfg.SOLVER.AMP.ENABLED and "float16" not in caplog.text
    find_model("mask2former_R50_coco", device="cpu", opts=["TEST.AMP_DTYPE", "float16"])
    assert "float16 (TEST.AMP_DTYPE) is for CUDA" in caplog.text


def test_the_picture_of_a_result_is_drawn_over_the_picture(run: Path, tmp_path: Path) -> None:
    picture(5).save(tmp_path / "photo.png")
    result = load(run)(tmp_path / "photo.png")
    assert Image.open(result.save(tmp_path / "drawn.png")).size >= (64, 48)


def test_a_picture_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "street.JPG").write_bytes(b"\xff\xd8")
    with pytest.raises(ConfigError, match=r"street\.JPG is a picture or a video, expected a model"):
        find_model(tmp_path / "street.JPG")
