"""train_net.py from end to end on generated shapes: kill and resume, two workers, its errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import PATIENCE, ROOT
from tests.tiny.model_inputs import NARROW_RESNET
from tests.tiny.programs import Program, run_script, script

CONFIG = "configs/shapes/panoptic_fpn/panoptic_fpn_R18_shapes.yaml"
SMALL = [
    *("SEED", "1", "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "1"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "2", "SOLVER.MAX_ITER", "24"),
    *("SOLVER.CHECKPOINT_PERIOD", "10", "TEST.EVALUATORS", "['panoptic','semantic']"),
    *("DATASETS.SHAPES.NUM_TRAIN", "10", "DATASETS.SHAPES.NUM_VAL", "5"),
    *("DATASETS.SHAPES.IMAGE_SIZE", "[64,64]"),
    *("INPUT.MIN_SIZE_TRAIN", "[64]", "INPUT.MIN_SIZE_TEST", "64"),
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.ROI_MASK_HEAD.CONV_DIM", "32"),
    *(str(item) for pair in NARROW_RESNET.items() for item in pair),
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def command(out: Path, cache: Path, *args: str) -> list[str]:
    """train_net.py with small settings: flags, then keys and values."""
    flags = [a for a in args if a.startswith("--")]
    opts = [a for a in args if not a.startswith("--")]
    return [
        *("train_net.py", "--config-file", CONFIG, *flags),
        *(*SMALL, "OUTPUT_DIR", str(out), "DATASETS.SHAPES.CACHE", str(cache), *opts),
    ]


def run(*args: Any) -> subprocess.CompletedProcess[str]:
    return run_script(*command(*args))


def losses(out: Path) -> dict[int, dict[str, float]]:
    rows = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert len({row["iteration"] for row in rows}) == len(rows), "an iteration is there twice"
    return {
        row["iteration"]: {k: v for k, v in row.items() if "loss" in k or k == "lr"} for row in rows
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    out = tmp_path_factory.mktemp("whole")
    done = run(out, cache)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def results(out: Path) -> dict[str, Any]:
    path = out / "inference" / "shapes_panoptic_val" / "results.json"
    return json.loads(path.read_text())


def test_a_run_leaves_all_its_files(whole: Path) -> None:
    for name in ("config.yaml", "run_info.json", "environment.txt", "metadata.json", "log.txt"):
        assert (whole / name).stat().st_size
    assert (whole / "last_checkpoint").read_text() == "model_final.pth"
    assert "PQ" in results(whole)["panoptic_seg"]
    assert (whole / "inference" / "shapes_panoptic_val" / "contact_sheet.png").stat().st_size
    log = (whole / "log.txt").read_text()
    assert "eta:" in log and log.count("--config-file") == 1  # the command line
    assert list(whole.glob("events.out.tfevents.*"))
    assert not list(whole.glob("*.tmp-*"))


def test_kill_and_resume_equals_uninterrupted(whole: Path, cache: Path, tmp_path: Path) -> None:
    process = Program(script, *command(tmp_path, cache), folder=tmp_path / "output")
    process.wait_for(tmp_path / "model_0000019.pth")
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "model_final.pth").exists()
    done = run(tmp_path, cache, "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Training from iteration" in done.stdout
    assert "Training from iteration 0 " not in done.stdout
    expected, got = losses(whole), losses(tmp_path)
    # The newest rows that were not yet written when the process died are missing, no more.
    assert max(expected) == max(got) and len(got) >= len(expected) - 1
    assert all(got[i] == expected[i] for i in got)
    assert results(tmp_path) == results(whole)


def test_two_workers_evaluate_to_the_same_numbers(whole: Path, cache: Path, tmp_path: Path) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2")
    torchrun = (*torchrun, "--master_port=0", "--standalone")
    weights = ("MODEL.WEIGHTS", str(whole / "model_final.pth"))
    done = subprocess.run(
        [*torchrun, *command(tmp_path, cache, "--eval-only", *weights)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        text=True,
        capture_output=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "log.txt.rank1").exists()
    assert results(tmp_path) == results(whole)


def test_the_last_line_says_where_the_weights_are(whole: Path) -> None:
    line = (whole / "log.txt").read_text().splitlines()[-1]
    assert "Training has ended: PQ " in line and f"predict --model {whole} IMAGES" in line


def test_dry_run_leaves_no_checkpoint(cache: Path, tmp_path: Path) -> None:
    done = run(tmp_path, cache, "--dry-run", "SOLVER.TIME_BUDGET", "5")
    assert done.returncode == 0, done.stderr[-3000:]
    for line in ("images of shapes_panoptic_train: 10", "classes: 7, 4 of them", "losses of"):
        assert line in done.stdout
    assert "iterations: as many as fit into 5 minutes, with " in done.stdout
    assert not list(tmp_path.glob("*.pth")) and not (tmp_path / "metrics.json").exists()


def test_a_mistake_ends_with_one_line(cache: Path, tmp_path: Path) -> None:
    done = run(tmp_path, cache, "SOLVER.BASE_RL", "1")
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "did you mean 'SOLVER.BASE_LR'" in errors[0]
    assert "Traceback" not in done.stderr


def test_a_command_that_fails_leaves_the_files_of_the_run(whole: Path, cache: Path) -> None:
    names = ("config.yaml", "run_info.json", "metadata.json")
    before = [(whole / name).read_bytes() for name in names]
    done = run(whole, cache, "--resume", "TEST.BEST_METRIC", "PQ")
    assert done.returncode == 2 and "TEST.BEST_METRIC" in done.stderr
    assert [(whole / name).read_bytes() for name in names] == before
