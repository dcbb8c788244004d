#!/usr/bin/env python3
"""The demo: train and evaluate on generated shapes, draw, and say what came out.

    python tools/demo.py [--output DIR] [KEY VALUE ...]

What is there from an earlier run is not done again: a finished run is only reported, a stopped one
goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CONFIG = "configs/shapes/panoptic_fpn/panoptic_fpn_R18_shapes.yaml"
NUM_PICTURES = 12  # images of the validation set that are drawn
# fvcore and Detectron2 still script a few functions, and torch says so at every start.
QUIET = "ignore:`torch.jit.script` is deprecated:FutureWarning"


class DemoError(Exception):
    """A step failed; printed without a traceback."""


def say(message: str) -> None:
    """Print one line of progress."""
    print(f"[demo] {message}", flush=True)


def fingerprint(opts: Sequence[str]) -> str:
    """Identifies what a finished step was made with: the demo's configs and `opts`."""
    digest = hashlib.sha256(" ".join(opts).encode())
    for folder in ("configs/common", "configs/shapes"):
        for path in sorted((ROOT / folder).rglob("*.yaml")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def run_to_end(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run a step's process, which ends by itself after a signal; returns its exit code."""
    from panoptic_ext.interruption import stoppable

    started: list[subprocess.Popen] = []

    def pass_on(_signum: int) -> None:
        # As SIGTERM: after Ctrl-C, which a terminal sends to both, a SIGINT would be the second.
        for process in started:
            process.terminate()

    with stoppable(on_signal=pass_on) as stop:
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment))
        code = started[0].wait()
    stop.check("stopped; the same command goes on from there")
    return code


class Steps:
    """Runs each step of the demo once; a mark in the output folder says that it is finished."""

    def __init__(self, output: Path, made_with: str) -> None:
        self._marks = output / ".demo.json"
        self._made_with = made_with
        try:
            is_file = self._marks.is_file()  # to open a pipe would wait for ever
            marks = json.loads(self._marks.read_text(encoding="utf-8")) if is_file else {}
        except (OSError, ValueError):
            marks = {}
        self._done: dict[str, bool] = marks.get("done", {})
        if marks and marks.get("made_with") != made_with:
            raise DemoError(
                f"{output} holds a demo that was made with other configs or options; remove it "
                "(make clean) to train anew, or choose another folder with --output"
            )
        output.mkdir(parents=True, exist_ok=True)
        self._write()

    def is_done(self, name: str) -> bool:
        """Whether an earlier run finished the step `name`."""
        return bool(self._done.get(name))

    def run(self, name: str, command: Sequence[str]) -> None:
        """Run `command` (arguments of this Python) unless the step `name` is finished."""
        if self.is_done(name):
            say(f"{name}: done already")
            return
        say(f"{name}: python {' '.join(command)}")
        environment = {"PYTHONWARNINGS": QUIET, "OMP_WAIT_POLICY": "passive", **os.environ}
        code = run_to_end([sys.executable, *command], environment)
        if code < 0:
            raise DemoError(f"{name} was killed by signal {-code}; the same command goes on")
        if code:
            raise DemoError(f"{name} failed with exit code {code}; its own message stands above")
        self._done[name] = True
        self._write()

    def _write(self) -> None:
        text = json.dumps({"made_with": self._made_with, "done": self._done})
        from panoptic_ext.atomic import write_atomic

        write_atomic(str(self._marks), lambda stream: stream.write(text.encode()))


def validation_images(config: Path) -> list[str]:
    """Paths of the first images of the run's test set."""
    from detectron2.data import DatasetCatalog

    from panoptic_ext.data import register_from_config
    from panoptic_ext.engine.run_config import load_cfg

    cfg = load_cfg(str(config), [])
    register_from_config(cfg)
    records = DatasetCatalog.get(cfg.DATASETS.TEST[0])
    return [record["file_name"] for record in records[:NUM_PICTURES]]


def last_results(metrics: Path) -> dict[str, float]:
    """The newest `panoptic_seg/*` values of a run's metrics.json."""
    results: dict[str, float] = {}
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if "panoptic_seg/PQ" in values:
            results = {k: v for k, v in values.items() if k.startswith("panoptic_seg/")}
    return results


def report(output: Path, seconds: float) -> None:
    """Print what the run reached and where its pictures lie."""
    metrics = output / "metrics.json"
    results = last_results(metrics) if metrics.is_file() else {}
    if not results:
        raise DemoError(f"{metrics} holds no evaluation; remove {output} and run the demo again")
    for key in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"):
        say(f"{key:>5} {results[f'panoptic_seg/{key}']:6.2f}")
    for what, folder in (("ground truth", "ground_truth"), ("predictions", "predictions")):
        pictures = [p for p in (output / folder).rglob("*") if p.suffix in (".png", ".jpg")]
        say(f"{what}: {len(pictures)} pictures in {output / folder}")
    for sheet in sorted(output.rglob("*contact_sheet*.*")):
        say(f"worst and best images: {sheet}")
    say(f"model, log and config: {output}/model_final.pth, log.txt, config.yaml")
    say(f"done in {seconds / 60:.1f} minutes")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config values")
    return parser.parse_args(arguments)


def run(output: Path, opts: Sequence[str]) -> None:
    """All steps; `output` is relative to the repository or absolute."""
    started = time.monotonic()
    folder = ROOT / output
    steps = Steps(folder, fingerprint(opts))
    train = ["train_net.py", "--config-file", CONFIG, "--resume", "OUTPUT_DIR", str(output)]
    steps.run("training and evaluation", [*train, *opts])
    config = folder / "config.yaml"
    truth = ["tools/visualize_data.py", "--config-file", str(config)]
    steps.run("pictures of the ground truth", [*truth, "--output", str(output / "ground_truth")])
    name = "pictures of predictions"
    predict = ["tools/predict.py", "--config-file", str(config)]
    if not steps.is_done(name):
        predict += ["--output", str(output / "predictions"), "--input", *validation_images(config)]
    steps.run(name, predict)
    report(output, time.monotonic() - started)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code: 0 done, 2 an error that the user can mend, 130 after Ctrl-C."""
    args = parse_arguments(arguments)
    from panoptic_ext.commands.command_line import run_command

    def run_or_say() -> int:
        try:
            run(args.output, args.opts)
        except DemoError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0

    return run_command(run_or_say, stopped="stopped; the same command goes on from there")


if __name__ == "__main__":
    sys.exit(main())
