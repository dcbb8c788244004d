"""docs/evaluation.md: its commands and its Python run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from panoptic_ext.commands import evaluate
from tests.docs.pages import DOCS, shell_lines
from tests.evaluation.reference import write_dataset
from tests.tiny import predictions as toy

PAGE = DOCS / "evaluation.md"
LINES = shell_lines(PAGE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """The current folder, with a truth and results under the names of the page."""
    images = [(i, n, *toy.truth(i)) for i, n in toy.NAMES.items()]
    for place in ("truth", "drawn/panoptic", "a/panoptic", "b/panoptic", "anna", "ben"):
        folder, _, kind = f"./{place}".rpartition("/")
        write_dataset(tmp_path / folder, kind, images)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("line", LINES)
def test_the_commands_run(line: str, folder: Path, capsys) -> None:
    words = shlex.split(line)
    assert words[:2] == ["panoptic-ext", "evaluate"]
    assert evaluate.main(words[2:]) == 0
    assert "PQ" in capsys.readouterr().out


def test_the_python_runs(capsys) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(code, {})
    printed = float(capsys.readouterr().out.splitlines()[0])
    assert printed == pytest.approx(float(re.search(r"# (\d+\.\d)", code)[1]), abs=0.05)
