"""Runs the shell blocks of a documentation page, one after the other, in a folder."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import panoptic_ext_cli
from panoptic_ext.commands import demo
from tests import ROOT
from tests.tiny.model_inputs import NARROW_RESNET
from tests.tiny.programs import run_function, script

DOCS = ROOT / "docs"

# What makes a training small. It is put at the end of every command that trains.
SMALL = [
    *("SEED", "1", "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "1"),
    *("SOLVER.TIME_BUDGET", "0"),
    *("TEST.EVAL_PERIOD", "0", "TEST.CONTACT_SHEET", "1"),
    *("DATASETS.SHAPES.NUM_TRAIN", "4", "DATASETS.SHAPES.NUM_VAL", "3"),
    *("DATASETS.SHAPES.IMAGE_SIZE", "[64,64]", "INPUT.MIN_SIZE_TRAIN", "[64]"),
    *("INPUT.MIN_SIZE_TEST", "64"),
    *(str(item) for pair in NARROW_RESNET.items() for item in pair),
]
# The commands that take KEY VALUE, by their second or first word.
TRAINS = ("train", "demo", "evaluator.py", "train_net.py")

Command = list[str]


def shell_lines(page: Path) -> list[str]:
    """The commands of a page's ```sh blocks, without comments, continued lines joined."""
    text = page.read_text(encoding="utf-8")
    lines: list[str] = []
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                lines.append(shlex.join(words))
    return lines


def command(line: str) -> Command:
    """A line as words: the file or the program that Python runs, and its arguments.

    Raises:
        ValueError: a line that the tests do not know how to run.
    """
    words = shlex.split(line)
    if words[:2] == ["make", "demo"] and len(words) == 2:
        words = ["panoptic-ext", "demo"]
    elif words[0] == "python":
        words = words[1:]
    if words[0] != "panoptic-ext" and not words[0].endswith(".py"):
        raise ValueError(f"the documentation has a command that its test cannot run: {line}")
    return [*words, *SMALL] if {*words[:2]} & {*TRAINS} else words


def run_all(commands: list[Command], folder: Path, cache: Path) -> list[str]:
    """Run commands in `folder`; the output of each.

    Raises:
        AssertionError: one failed; has its output.
    """
    environment = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
        "PANOPTIC_EXT_CACHE": str(cache),
    }
    outputs = []
    for words in commands:
        done = run_function(run_command, words, cwd=folder, env=environment)
        outputs.append(done.stdout + done.stderr)
        assert done.returncode == 0, f"{' '.join(words)}\n{outputs[-1][-6000:]}"
    return outputs


def run_command(words: Command) -> None:
    """A command, in the process that has been started for it."""
    demo.run_to_end = _run_step
    script(*(["-m", "panoptic_ext", *words[1:]] if words[0] == "panoptic-ext" else words))


def _run_step(words: Sequence[str], look: Callable[[], None]) -> int:
    """A step of the demo, which has a process of its own: here a child of this one."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = panoptic_ext_cli.main(words[len(demo.PROGRAM) :])
            sys.stdout.flush()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    look()
    return code
