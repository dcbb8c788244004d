"""What the command lines share."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from panoptic_ext.commands.command_line import explain_os_error, split_options
from tests import ROOT

TOOLS = ROOT / "tools"
OTHERS = {"__init__", "demo", "install_detectron2"}  # these load torch later or not at all


@pytest.mark.parametrize(
    ("values", "opts", "expected"),
    [
        (["a", "b"], [], (["a", "b"], [])),
        (["a", "MODEL.DEVICE", "cpu"], ["SEED", "3"],
         (["a"], ["MODEL.DEVICE", "cpu", "SEED", "3"])),
        (["a", "SEED", "3"], [], (["a"], ["SEED", "3"])),
        (["a", "FLOAT32_PRECISION", "high"], [], (["a"], ["FLOAT32_PRECISION", "high"])),
        (["a", "DATASETS.PANOPTIC.my_set.JSON", "x"], [],
         (["a"], ["DATASETS.PANOPTIC.my_set.JSON", "x"])),
        (["IMAGE.JPG", "MODEL.DEVICE", "cpu"], [], (["IMAGE.JPG"], ["MODEL.DEVICE", "cpu"])),
        ([], ["SEED", "3"], ([], ["SEED", "3"])),
    ],
)  # fmt: skip
def test_config_values_after_many_values(
    values: list[str], opts: list[str], expected: tuple
) -> None:
    assert split_options(values, opts, is_value=lambda word: word == "IMAGE.JPG") == expected


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "No space left"), "cannot write to out: No space left"),
        (FileNotFoundError(2, "No such file", "in/a.jpg"), "in/a.jpg: No such file"),
        (PermissionError(13, "Permission denied", "out/b"), "cannot write to out/b: Perm"),
        (PermissionError(13, "Permission denied", "outside"), "outside: Permission"),
        (OSError("odd"), "cannot write to out: odd"),
    ],
)
def test_the_file_of_an_error_is_named(error: OSError, text: str) -> None:
    assert explain_os_error(error, "out").startswith(text)


@pytest.mark.parametrize(
    "name", [p.stem for p in sorted(TOOLS.glob("*.py")) if p.stem not in OTHERS]
)
def test_ctrl_c_while_a_tool_loads_prints_nothing(name: str, tmp_path: Path) -> None:
    """Case 10: torch takes seconds to load, and a stopped import is a traceback."""
    (tmp_path / "torch.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit('still there')\n"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(TOOLS / f"{name}.py")], env=env, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
