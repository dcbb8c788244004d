"""The tutorial: its commands run one after the other, and leave the files that it names."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests import ROOT
from tests.docs.pages import DOCS, command, run_all, shell_lines

PAGE = DOCS / "tutorial.md"


@pytest.mark.slow
def test_every_command_of_the_page_runs(tmp_path: Path) -> None:
    for name in ("draw_street.py", "dataset.py", "street.yaml"):
        shutil.copy(DOCS / "examples" / name, tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    outputs = run_all([command(x) for x in shell_lines(PAGE)], tmp_path, tmp_path / "cache")
    page = PAGE.read_text(encoding="utf-8")
    results = tmp_path / "output" / "street" / "inference" / "street_val"
    for name in re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE):
        assert (results / name).is_file(), name
    assert "[demo]    PQ" in outputs[0]
    assert "street_train: good, 60 images, 1 things + 2 stuff" in "".join(outputs)
    assert (tmp_path / "curves.svg").is_file()


def test_a_command_that_the_test_cannot_run_is_refused() -> None:
    with pytest.raises(ValueError, match="has a command that its test cannot run: rm -rf output"):
        command("rm -rf output")
