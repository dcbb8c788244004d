"""A model of transformers from end to end on generated shapes, by the program."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from panoptic_ext.commands.predict import main as predict
from tests import ROOT
from tests.tiny.programs import run_script
from tests.tiny.train_in_process import train
from tests.tiny.transformers_models import save_tiny

pytest.importorskip("transformers", minversion="4.49", reason="the hf extra is not installed")
pytestmark = pytest.mark.slow

LABELS = ["sky", "circle", "disc", "square", "N/A"]


def program(*args: object) -> subprocess.CompletedProcess[str]:
    """`panoptic-ext` in a process of its own, as users start it."""
    return run_script("-m", "panoptic_ext", *map(str, args), env={"HF_HUB_OFFLINE": "1"})


def losses(run: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    return {row["iteration"]: row["total_loss"] for row in rows if "total_loss" in row}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network in `net`, and a config of a training in run.yaml."""
    folder = tmp_path_factory.mktemp("run")
    save_tiny("mask2former", folder / "net", LABELS)
    shapes = {"NUM_TRAIN": 4, "NUM_VAL": 2, "IMAGE_SIZE": [64, 64], "CACHE": f"{folder}/cache"}
    content = {
        "_BASE_": str(ROOT / "configs/common/transformers/Base-TransformersPanoptic.yaml"),
        "MODEL": {
            "DEVICE": "cpu",
            "TRANSFORMERS": {"NAME_OR_PATH": f"{folder}/net", "THRESHOLD": 0.2},
        },
        "DATASETS": {
            "TRAIN": ["shapes_panoptic_train"], "TEST": ["shapes_panoptic_val"], "SHAPES": shapes,
        },
        "INPUT": {"MIN_SIZE_TRAIN": [64]},
        "SOLVER": {
            "IMS_PER_BATCH": 2, "MAX_ITER": 4, "WARMUP_ITERS": 1, "CHECKPOINT_PERIOD": 2,
        },
        "TEST": {"EVALUATORS": ["panoptic", "semantic", "instance"], "CONTACT_SHEET": 0},
        "DATALOADER": {"NUM_WORKERS": 0},
        "SEED": 1,
        "OUTPUT_DIR": f"{folder}/run",
    }  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump(content))
    return folder


def test_a_network_is_fine_tuned_resumed_and_predicts(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config, run = str(folder / "run.yaml"), folder / "run"
    assert train(["--config-file", config, "--dry-run"]) == 0
    assert train(["--config-file", config]) == 0
    assert "2 of the 7 classes" in "".join(capfd.readouterr())
    results = json.loads((run / "inference/shapes_panoptic_val/results.json").read_text())
    assert {"panoptic_seg", "sem_seg", "segm"} <= set(results)
    before = losses(run)
    # The network that the run began with is gone: the run's folder is enough.
    shutil.rmtree(folder / "net")
    (run / "model_final.pth").unlink()
    assert train(["--config-file", str(run / "config.yaml"), "--resume"]) == 0
    assert losses(run) == before and max(before) == 3
    images = next((folder / "cache").glob("shapes_val*/images"))
    predicted = program(
        *("predict", "--config-file", run, "--input", images),
        *("--output", folder / "out", "--save-panoptic"),
    )
    assert predicted.returncode == 0 and "2 predicted" in predicted.stdout, predicted.stderr
    content = json.loads((folder / "out" / "panoptic.json").read_text())
    assert len(content["annotations"]) == 2
    capfd.readouterr()
    assert train(["--config-file", config, "OUTPUT_DIR", str(folder / "other")]) == 2
    assert "net' is no folder" in capfd.readouterr().err


def test_a_network_as_it_is_predicts_and_is_evaluated(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    net = save_tiny("detr", tmp_path / "net", LABELS)
    keys = ["MODEL.TRANSFORMERS.NAME_OR_PATH", net, "OUTPUT_DIR", str(tmp_path / "results")]
    config = ["--config-file", str(folder / "run.yaml")]
    assert train([*config, "--eval-only", *keys, "MODEL.TRANSFORMERS.CLASS_HEAD", "keep"]) == 0
    assert (tmp_path / "results/inference/shapes_panoptic_val/results.json").exists()
    assert "5 classes have no label: 'triangle'" in "".join(capfd.readouterr())
    images = str(next((folder / "cache").glob("shapes_val*/images")))
    out = ["--input", images, "--output", str(tmp_path / "out")]
    assert predict([*config, *out, *keys, "DATASETS.TRAIN", "[]", "DATASETS.TEST", "[]"]) == 0
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == 2
