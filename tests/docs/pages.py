"""Runs the shell blocks of a documentation page, one after the other, in a folder.

All commands run in children of one process that has imported the package, because importing torch
takes most of the time of such short runs.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests import PATIENCE, ROOT

DOCS = ROOT / "docs"

# What makes a training small. It is put at the end of every command that trains.
SMALL = [
    *("SEED", "1", "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "1"),
    *("TEST.EVAL_PERIOD", "0", "TEST.CONTACT_SHEET", "1"),
    *("DATASETS.SHAPES.NUM_TRAIN", "4", "DATASETS.SHAPES.NUM_VAL", "3"),
    *("DATASETS.SHAPES.IMAGE_SIZE", "[64,64]", "INPUT.MIN_SIZE_TRAIN", "[64]"),
    *("INPUT.MIN_SIZE_TEST", "64"),
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
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
        "PANOPTIC_EXT_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    result = subprocess.run(
        [sys.executable, "-m", "tests.docs.run_commands"],
        cwd=folder,
        env=environment,
        input=json.dumps(commands),
        text=True,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-6000:]
    return json.loads(result.stdout.splitlines()[-1])
