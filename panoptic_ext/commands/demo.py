"""Train and evaluate on generated shapes, draw pictures, and print the results.

    panoptic-ext demo [--model NAME] [--output DIR] [KEY VALUE ...]

`--model` chooses what is trained: efficientps (the default, a short training), panoptic_fpn (twice
the steps) or mask2former (four times).

Finished steps are not repeated. Of a finished demo only the results are printed; a training that
was stopped continues from its last checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog

import panoptic_ext_cli
from panoptic_ext.atomic import write_atomic
from panoptic_ext.commands.command_line import command_main, command_parser
from panoptic_ext.config.shipped import find_config, shipped_configs
from panoptic_ext.data import register_from_config
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.errors import PanopticExtError
from panoptic_ext.interruption import stoppable

CONFIGS = {
    "efficientps": "shapes/efficientps/efficientps_demo_shapes.yaml",
    "mask2former": "shapes/mask2former/mask2former_R18_shapes.yaml",
    "panoptic_fpn": "shapes/panoptic_fpn/panoptic_fpn_R18_shapes.yaml",
}
"""What is trained, by the option --model."""
NUM_PICTURES = 12
"""Images of the validation set that are drawn."""

# The module's file and not the program: a checkout need not be installed to run it.
PROGRAM = (sys.executable, str(panoptic_ext_cli.__file__))
_STOPPED = "stopped; the same command goes on from there"


class DemoError(PanopticExtError):
    """A step failed, or its results are missing."""


def say(message: str) -> None:
    """Print one line of progress."""
    print(f"[demo] {message}", flush=True)


def fingerprint(opts: Sequence[str]) -> str:
    """A hash of what the results of the demo depend on: its configs and `opts`."""
    digest = hashlib.sha256(" ".join(opts).encode())
    for folder in ("common", "shapes"):
        for path in sorted((Path(shipped_configs()) / folder).rglob("*.yaml")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def run_to_end(command: Sequence[str]) -> int:
    """Run a step's process, which ends by itself after a signal; returns its exit code."""
    started: list[subprocess.Popen] = []

    def pass_on(_signum: int) -> None:
        # SIGTERM, because a terminal sends Ctrl-C to both processes: another SIGINT would be the
        # second one of the step, which ends it at once.
        for process in started:
            process.terminate()

    with stoppable(on_signal=pass_on) as stop:
        started.append(subprocess.Popen(command))
        code = started[0].wait()
    stop.check(_STOPPED)
    return code


class Steps:
    """Runs each step of the demo once; a file in the output folder lists the finished ones.

    Args:
        output: the folder.
        made_with: the fingerprint of this demo.
        program: the command that gets the words of each step as arguments.
    """

    def __init__(self, output: Path, made_with: str, program: Sequence[str] = PROGRAM) -> None:
        self._program = program
        self._marks_file = output / ".demo.json"
        self._made_with = made_with
        try:
            is_file = self._marks_file.is_file()  # opening a named pipe would wait for ever
            marks = json.loads(self._marks_file.read_text(encoding="utf-8")) if is_file else {}
        except (OSError, ValueError):
            marks = {}
        self._finished: dict[str, bool] = marks.get("done", {})
        if marks and marks.get("made_with") != made_with:
            raise DemoError(
                f"{output} holds a demo that was made with other configs or options; remove it "
                "(make clean) to train anew, or choose another folder with --output"
            )
        output.mkdir(parents=True, exist_ok=True)
        self._write()

    def is_done(self, name: str) -> bool:
        """Whether an earlier run finished the step `name`."""
        return bool(self._finished.get(name))

    def run(self, name: str, words: Sequence[str]) -> None:
        """Run a command, `words`, unless the step `name` is finished."""
        if self.is_done(name):
            say(f"{name}: done already")
            return
        say(f"{name}: panoptic-ext {' '.join(words)}")
        code = run_to_end([*self._program, *words])
        if code < 0:
            raise DemoError(f"{name} was killed by signal {-code}; the same command goes on")
        if code:
            raise DemoError(f"{name} failed with exit code {code}; its own message stands above")
        self._finished[name] = True
        self._write()

    def _write(self) -> None:
        text = json.dumps({"made_with": self._made_with, "done": self._finished})
        write_atomic(str(self._marks_file), lambda stream: stream.write(text.encode()))


def plan(config: str, opts: Sequence[str]) -> str:
    """What the demo is going to do, in a line."""
    cfg = load_cfg(config, opts)
    shapes = cfg.DATASETS.SHAPES
    return (
        f"{Path(config).stem}: {cfg.SOLVER.MAX_ITER} training steps on {shapes.NUM_TRAIN} "
        f"generated images, evaluation on {shapes.NUM_VAL}, pictures of {NUM_PICTURES}; "
        "after its first steps the training says how long it takes on this machine"
    )


def validation_images(config: Path) -> list[str]:
    """Paths of the first images of the run's test set."""
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
    """Print the quality that the run reached, and the folders of its pictures."""
    metrics = output / "metrics.json"
    results = last_results(metrics) if metrics.is_file() else {}
    if not results:
        raise DemoError(f"{metrics} holds no evaluation; remove {output} and run the demo again")
    for key in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"):
        say(f"{key:>5} {results[f'panoptic_seg/{key}']:6.2f}")
    for subject, folder in (("ground truth", "ground_truth"), ("predictions", "predictions")):
        pictures = [p for p in (output / folder).rglob("*") if p.suffix in (".png", ".jpg")]
        say(f"{subject}: {len(pictures)} pictures in {output / folder}")
    for sheet in sorted(output.rglob("*contact_sheet*.*")):
        say(f"worst and best images: {sheet}")
    say(f"model, log and config: {output}/model_final.pth, log.txt, config.yaml")
    say(f"done in {seconds / 60:.1f} minutes")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("demo", __doc__, config_values=True)
    parser.add_argument(
        "--model", choices=[*CONFIGS], default=next(iter(CONFIGS)), help="what is trained"
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder")
    return parser.parse_args(argv)


@command_main(parse_args, output=lambda args: str(args.output), stopped=lambda args: _STOPPED)
def main(args: argparse.Namespace) -> int:
    """Do all steps and report; returns 0."""
    started, output = time.monotonic(), args.output
    path = find_config(CONFIGS[args.model])
    steps = Steps(output, fingerprint([args.model, *args.opts]))
    say(plan(path, args.opts))
    train = ["train", "--config-file", path, "--resume", "OUTPUT_DIR", str(output)]
    steps.run("training and evaluation", [*train, *args.opts])
    config = output / "config.yaml"
    truth = ["visualize-data", "--config-file", str(config)]
    steps.run("pictures of the ground truth", [*truth, "--output", str(output / "ground_truth")])
    name = "pictures of predictions"
    predict = ["predict", "--config-file", str(config)]
    # Listing the images reads the data set: not for a step that is finished.
    if not steps.is_done(name):
        predict += ["--output", str(output / "predictions"), "--input", *validation_images(config)]
    steps.run(name, predict)
    report(output, time.monotonic() - started)
    return 0
