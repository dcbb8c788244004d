"""Train and evaluate on generated shapes, draw pictures, and print the results.

    panoptic-ext demo [--model NAME] [--output DIR] [KEY VALUE ...]

`--model` chooses what is trained: mask2former (the default, a short training), efficientps or
panoptic_fpn (longer ones). Each has a folder of its own below output/demo.

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
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

import panoptic_ext_cli
from panoptic_ext.atomic import write_atomic
from panoptic_ext.commands.command_line import command_main, command_parser
from panoptic_ext.config.shipped import find_config, shipped_configs
from panoptic_ext.data import register_from_config
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.errors import PanopticExtError, unknown
from panoptic_ext.interruption import stoppable

CONFIGS = {
    "mask2former": "shapes/mask2former/mask2former_demo_shapes.yaml",
    "efficientps": "shapes/efficientps/efficientps_demo_shapes.yaml",
    "panoptic_fpn": "shapes/panoptic_fpn/panoptic_fpn_R18_shapes.yaml",
}
"""What is trained, by the option --model; the first is the default."""
RUNS = Path("output/demo")
"""Below it each model has its folder, unless --output names another."""
NUM_PICTURES = 12
"""Images of the validation set that are drawn."""

# The module's file and not the program: a checkout need not be installed to run it.
PROGRAM = (sys.executable, str(panoptic_ext_cli.__file__))
_STOPPED = "stopped; the same command goes on from there"
_TRAINING = "training and evaluation"
_LOOK_PERIOD = 0.5  # seconds between looks at a running step


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


def run_to_end(command: Sequence[str], look: Callable[[], None] = lambda: None) -> int:
    """Run a step's process, which ends by itself after a signal; returns its exit code.

    Args:
        command: starts the process.
        look: called now and then while it runs.
    """
    started: list[subprocess.Popen] = []

    def pass_on(_signum: int) -> None:
        # SIGTERM, because a terminal sends Ctrl-C to both processes: another SIGINT would be the
        # second one of the step, which ends it at once.
        for process in started:
            process.terminate()

    with stoppable(on_signal=pass_on) as stop:
        process = subprocess.Popen(command)
        started.append(process)
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_PERIOD)
            look()
    stop.check(_STOPPED)
    return process.returncode


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
                f"{output} holds a demo that was made with other configs or options; remove that "
                "folder to train anew, or choose another one with --output"
            )
        output.mkdir(parents=True, exist_ok=True)
        self._write()

    def is_done(self, name: str) -> bool:
        """Whether an earlier run finished the step `name`."""
        return bool(self._finished.get(name))

    def run(self, name: str, words: Sequence[str], look: Callable[[], None] = lambda: None) -> None:
        """Run a command, `words`, unless the step `name` is finished; `look`: see `run_to_end`."""
        if self.is_done(name):
            say(f"{name}: done already")
            return
        say(f"{name}: panoptic-ext {' '.join(words)}")
        code = run_to_end([*self._program, *words], look)
        if code < 0:
            raise DemoError(f"{name} was killed by signal {-code}; the same command goes on")
        if code:
            raise DemoError(f"{name} failed with exit code {code}; its own message stands above")
        self._finished[name] = True
        self._write()

    def _write(self) -> None:
        text = json.dumps({"made_with": self._made_with, "done": self._finished})
        write_atomic(str(self._marks_file), lambda stream: stream.write(text.encode()))


class TimeTeller:
    """Says how long the training takes, as soon as it has measured its first steps.

    Calls of it read the run's metrics.json, whose first row comes after 20 steps.

    Args:
        metrics: the file; rows that an earlier part of the training left there are passed over.
        max_iter: training steps in all.
        time_budget: minutes of training and evaluation, whatever the number of steps; 0: none.
    """

    def __init__(self, metrics: Path, max_iter: int, time_budget: float = 0.0) -> None:
        self._metrics, self._max_iter, self._time_budget = metrics, max_iter, time_budget
        self._rows_before = len(self._rows())
        self._has_told = False

    def __call__(self) -> None:
        """Say it once, when a row is there."""
        if self._has_told:
            return
        for row in self._rows()[self._rows_before :]:
            steps_left = self._max_iter - int(row.get("iteration", 0)) - 1
            if "time" in row and (steps_left > 0 or self._time_budget):
                say(
                    f"a training step takes {row['time']:.2f} s on this machine: about "
                    f"{self._outlook(row['time'], steps_left)}, then pictures"
                )
                self._has_told = True
                return

    def _outlook(self, seconds: float, steps_left: int) -> str:
        """What steps of so many seconds mean for the training."""
        if self._time_budget:
            steps = round(60 * self._time_budget / seconds)
            return f"{steps} steps fit into the {self._time_budget:g} minutes"
        left = timedelta(seconds=round(seconds * steps_left))
        return f"{left} of training are left, then evaluation"

    def _rows(self) -> list[dict[str, float]]:
        return rows_of(self._metrics)


def plan(name: str, cfg: CfgNode, output: Path) -> list[str]:
    """What the demo is going to do, line by line."""
    shapes, solver = cfg.DATASETS.SHAPES, cfg.SOLVER
    steps, asked = f"{solver.MAX_ITER} steps", "long the training takes"
    if solver.TIME_BUDGET:
        steps, asked = f"{solver.TIME_BUDGET:g} minutes of steps", "many steps fit into them"
    return [
        f"{name} on generated shapes; results will lie in {output}",
        f"1. data: {shapes.NUM_TRAIN} images to train on and {shapes.NUM_VAL} to evaluate on",
        f"2. {_TRAINING}: {steps} of {solver.IMS_PER_BATCH} images; after 20 steps a line says "
        f"how {asked} on this machine",
        f"3. pictures of the ground truth, 4. pictures of predictions of {NUM_PICTURES} images",
        "Ctrl-C stops it, and the same command goes on",
    ]


def generate_data(cfg: CfgNode) -> None:
    """Generate the data sets of a config, unless they are there."""
    register_from_config(cfg)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        DatasetCatalog.get(name)


def validation_images(config: Path) -> list[str]:
    """Paths of the first images of the run's test set."""
    cfg = load_cfg(str(config), [])
    register_from_config(cfg)
    records = DatasetCatalog.get(cfg.DATASETS.TEST[0])
    return [record["file_name"] for record in records[:NUM_PICTURES]]


def rows_of(metrics: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.json that are whole; none without the file."""
    rows: list[dict[str, float]] = []
    if metrics.is_file():
        for line in metrics.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # a row that is half written
                rows.append(json.loads(line))
    return rows


def last_results(metrics: Path) -> dict[str, float]:
    """The newest `panoptic_seg/*` values of a run's metrics.json."""
    evaluations = [row for row in rows_of(metrics) if "panoptic_seg/PQ" in row]
    newest = evaluations[-1] if evaluations else {}
    return {k: v for k, v in newest.items() if k.startswith("panoptic_seg/")}


def report(output: Path, seconds: float) -> None:
    """Print the quality that the run reached, and the folders of its pictures."""
    metrics = output / "metrics.json"
    results = last_results(metrics)
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


def model_name(text: str) -> str:
    """An argparse type: a key of `CONFIGS`."""
    if text not in CONFIGS:
        raise argparse.ArgumentTypeError(unknown("model", text, CONFIGS))
    return text


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; `output` is the model's folder unless it is given."""
    parser = command_parser("demo", __doc__, config_values=True)
    names, first = ", ".join(CONFIGS), next(iter(CONFIGS))
    parser.add_argument(
        "--model", type=model_name, default=first, help=f"what is trained: {names} ({first})"
    )
    parser.add_argument("--output", type=Path, help=f"folder; default: {RUNS}/<model>")
    args = parser.parse_args(argv)
    args.output = args.output or RUNS / args.model
    return args


@command_main(parse_args, output=lambda args: str(args.output), stopped=lambda args: _STOPPED)
def main(args: argparse.Namespace) -> int:
    """Do all steps and report; returns 0."""
    started, output = time.monotonic(), args.output
    path = find_config(CONFIGS[args.model])
    steps = Steps(output, fingerprint([args.model, *args.opts]))
    cfg = load_cfg(path, args.opts)
    if not steps.is_done(_TRAINING):
        for line in plan(args.model, cfg, output):
            say(line)
        say("data: generated, unless an earlier demo has left it")
        generate_data(cfg)
    tell_time = TimeTeller(output / "metrics.json", cfg.SOLVER.MAX_ITER, cfg.SOLVER.TIME_BUDGET)
    train = ["train", "--config-file", path, "--resume", "OUTPUT_DIR", str(output)]
    steps.run(_TRAINING, [*train, *args.opts], tell_time)
    draw(steps, output)
    report(output, time.monotonic() - started)
    return 0


def draw(steps: Steps, output: Path) -> None:
    """Draw the ground truth of training images, and predictions of the run in `output`."""
    config = output / "config.yaml"
    truth = ["visualize-data", "--config-file", str(config)]
    steps.run("pictures of the ground truth", [*truth, "--output", str(output / "ground_truth")])
    name = "pictures of predictions"
    predict = ["predict", "--config-file", str(config)]
    # Listing the images reads the data set: not for a step that is finished.
    if not steps.is_done(name):
        predict += ["--output", str(output / "predictions"), "--input", *validation_images(config)]
    steps.run(name, predict)
