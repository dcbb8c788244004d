"""The command demo: all steps up to the report; finished steps are not repeated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from panoptic_ext.commands import demo
from tests import PATIENCE, ROOT
from tests.docs.pages import run_command
from tests.tiny.model_inputs import NARROW_RESNET
from tests.tiny.programs import run_function

SMALL = [
    *("SEED", "1", "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "3", "SOLVER.WARMUP_ITERS", "1"),
    *("SOLVER.TIME_BUDGET", "0"),
    *("TEST.EVALUATORS", "['panoptic']", "TEST.CONTACT_SHEET", "1"),
    *("DATASETS.SHAPES.NUM_TRAIN", "4", "DATASETS.SHAPES.NUM_VAL", "3"),
    *("DATASETS.SHAPES.IMAGE_SIZE", "[64,64]", "INPUT.MIN_SIZE_TRAIN", "[64]"),
    *("INPUT.MIN_SIZE_TEST", "64", "MODEL.FPN.OUT_CHANNELS", "32"),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "32"),
    *(str(item) for pair in NARROW_RESNET.items() for item in pair),
]
PYTHON = [sys.executable]
STEPS = ("training and evaluation", "pictures of the ground truth", "pictures of predictions")


def run(output: Path, *opts: str) -> subprocess.CompletedProcess[str]:
    """The script, whose steps are children of its process here; test_packaging.py has real ones."""
    words = ["tools/demo.py", "--model", "panoptic_fpn", "--output", str(output), *SMALL, *opts]
    return run_function(run_command, words)


def times(folder: Path) -> dict[Path, int]:
    """When each file of the steps was written."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".demo.json")
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.slow
def test_end_to_end_and_a_second_demo_repeats_no_step(tmp_path: Path) -> None:
    output, cache = tmp_path / "demo", ("DATASETS.SHAPES.CACHE", str(tmp_path / "cache"))
    first = run(output, *cache)
    assert first.returncode == 0, first.stderr[-3000:]
    plan, steps = first.stdout.index("1. data"), first.stdout.index(f"{STEPS[0]}: panoptic-ext")
    assert plan < first.stdout.index("data: generated") < steps
    for line in ("PQ", "ground truth: ", "predictions: ", "worst and best images: ", "done in "):
        assert line in first.stdout
    assert len(list((output / "ground_truth").rglob("*.jpg"))) == 4
    assert len(list((output / "predictions").rglob("*.jpg"))) == 3
    assert (output / "model_final.pth").exists()
    written = times(output)

    again = run(output, *cache)
    assert again.returncode == 0, again.stderr[-3000:]
    for step in STEPS:
        assert f"{step}: done already" in again.stdout
    assert again.stdout.count(" PQ ") == 1 and "1. data" not in again.stdout
    assert times(output) == written

    other = run(output, *cache, "SOLVER.BASE_LR", "0.5")
    assert other.returncode == 2 and "Traceback" not in other.stderr
    assert "made with other configs or options; remove that folder" in other.stderr
    assert times(output) == written


def test_a_failed_step_is_repeated(tmp_path: Path) -> None:
    steps = demo.Steps(tmp_path / "out", "a", PYTHON)
    with pytest.raises(demo.DemoError, match=r"^draw failed with exit code 3; its own message"):
        steps.run("draw", ["-c", "raise SystemExit(3)"])
    assert not demo.Steps(tmp_path / "out", "a", PYTHON).is_done("draw")
    mark = tmp_path / "mark"
    steps.run("draw", ["-c", f"open({str(mark)!r}, 'x')"])
    demo.Steps(tmp_path / "out", "a", PYTHON).run("draw", ["-c", f"open({str(mark)!r}, 'x')"])
    with pytest.raises(demo.DemoError, match="holds a demo that was made with other configs"):
        demo.Steps(tmp_path / "out", "b", PYTHON)
    (tmp_path / "out" / ".demo.json").write_text("{half")
    assert not demo.Steps(tmp_path / "out", "b", PYTHON).is_done("draw")


def test_each_model_has_its_config_and_the_plan_says_what_is_done() -> None:
    for name, config in demo.CONFIGS.items():
        cfg = demo.load_cfg(demo.find_config(config), ["DATASETS.SHAPES.NUM_VAL", "3"])
        text = "\n".join(demo.plan(name, cfg, Path("out")))
        assert text.startswith(f"{name} on generated shapes; results will lie in out\n")
        budget, images = cfg.SOLVER.TIME_BUDGET, f"{cfg.SOLVER.IMS_PER_BATCH} images"
        length = f"{budget:g} minutes of steps" if budget else f"{cfg.SOLVER.MAX_ITER} steps"
        assert f"{length} of {images}" in text
        assert "3 to evaluate on" in text


def test_each_model_has_a_folder_of_its_own() -> None:
    for name in demo.CONFIGS:
        assert demo.parse_args(["--model", name]).output == Path("output/demo", name)
    first = demo.parse_args([])
    assert first.model in demo.CONFIGS and first.output == Path("output/demo", first.model)
    assert demo.parse_args(["--output", "here"]).output == Path("here")


def test_an_unknown_model_lists_those_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        demo.parse_args(["--model", "mask2fromer"])
    message = capsys.readouterr().err.splitlines()[-1]
    assert "unknown model 'mask2fromer'; did you mean 'mask2former'?" in message
    assert all(name in message for name in demo.CONFIGS)


def make_demo(*words: str, environment: str = "") -> subprocess.CompletedProcess[str]:
    """What `make demo` would do."""
    env = {**os.environ, "MODEL": environment}
    command = ["make", "--dry-run", "demo", *words]
    return subprocess.run(
        command, cwd=ROOT, env=env, text=True, capture_output=True, timeout=PATIENCE, check=False
    )


def test_make_takes_the_model_that_stands_behind_it_alone() -> None:
    command = "tools/demo.py"
    assert make_demo().stdout.rstrip().endswith(command)
    for name in demo.CONFIGS:
        assert make_demo(f"MODEL={name}").stdout.rstrip().endswith(f"{command} --model {name}")
    wrong = make_demo("MODEL=other")
    assert wrong.returncode == 2 and command not in wrong.stdout
    assert f"unknown model MODEL=other; known: {' '.join(demo.CONFIGS)}." in wrong.stderr
    exported = make_demo(environment="efficientps").stdout
    assert exported.startswith("[demo] the environment variable MODEL (efficientps) is not read")
    assert exported.rstrip().endswith(command)


def test_the_time_is_said_once_from_rows_of_this_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = tmp_path / "metrics.json"
    rows = [{"iteration": i, "time": seconds} for i, seconds in ((19, 9.0), (39, 0.5), (59, 0.7))]
    metrics.write_text(json.dumps(rows[0]) + "\n")
    tell = demo.TimeTeller(metrics, 100)
    tell()
    assert capsys.readouterr().out == ""
    metrics.write_text("\n".join(json.dumps(row) for row in rows))
    tell()
    tell()
    said = capsys.readouterr().out
    assert said.count("[demo]") == 1
    assert "takes 0.50 s on this machine: about 0:00:30 of training are left" in said
    metrics.unlink()
    tell = demo.TimeTeller(metrics, 10, 3.0)
    metrics.write_text(json.dumps(rows[1]) + "\n")
    tell()
    assert "about 360 steps fit into the 3 minutes" in capsys.readouterr().out


def test_the_fingerprint_depends_on_the_options() -> None:
    assert demo.fingerprint(["SEED", "1"]) == demo.fingerprint(["SEED", "1"])
    assert len({demo.fingerprint(o) for o in ([], ["SEED", "1"], ["SEED", "2"])}) == 3


def test_the_report_takes_the_newest_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(demo.DemoError, match="holds no evaluation; remove"):
        demo.report(tmp_path, 0.0)
    rows = [
        {"panoptic_seg/" + key: value for key in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st")}
        for value in (1.0, 42.5)
    ]
    lines = [json.dumps(row) for row in (rows[0], {"iteration": 3}, rows[1])]
    (tmp_path / "metrics.json").write_text("\n".join([*lines, '{"half']))
    demo.report(tmp_path, 90.0)
    printed = capsys.readouterr().out
    assert printed.count("42.50") == 5 and "done in 1.5 minutes" in printed


def test_a_signal_reaches_the_step_and_ends_the_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo ends after the step has ended by itself."""
    marks = [tmp_path / name for name in ("ready", "ended")]
    step = (
        "import pathlib, signal, sys, time\n"
        f"ready, ended = map(pathlib.Path, {list(map(str, marks))!r})\n"
        "def end(*_):\n    ended.touch()\n    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "ready.touch()\n"
        "time.sleep(60)\n"
    )

    def interrupt() -> None:
        while not marks[0].exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    def steps(*_: object) -> None:
        threading.Thread(target=interrupt).start()
        demo.run_to_end([sys.executable, "-S", "-c", step])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "Steps", steps)
        assert demo.main(["--output", str(tmp_path / "out")]) == 130
    assert marks[1].exists()
    assert capsys.readouterr().err == "stopped; the same command goes on from there\n"
