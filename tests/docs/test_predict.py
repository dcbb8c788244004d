"""README's first lines and docs/predict.md: their Python and their commands run as they stand."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from panoptic_ext import model_zoo
from panoptic_ext.commands import predict
from panoptic_ext.model_zoo.entry import ZooEntry
from panoptic_ext.prediction.model_source import find_model
from tests import ROOT
from tests.docs.pages import DOCS, shell_lines
from tests.tiny.finished_run import picture
from tests.tiny.zoo import own_zoo as own_zoo
from tests.tiny.zoo import tiny_entry as tiny_entry
from tests.tiny.zoo import zoo_run as zoo_run

README, PAGE = ROOT / "README.md", DOCS / "predict.md"
COMMANDS = [
    line for page in (README, PAGE) for line in shell_lines(page) if " predict --model " in line
]


@pytest.fixture
def folder(zoo_run: Path, clean_catalogs: None, tmp_path: Path, monkeypatch) -> Path:
    """The current folder, with a run in output/demo/mask2former and output/street, and pictures."""
    for name in ("demo/mask2former", "street"):
        shutil.copytree(zoo_run, tmp_path / "output" / name)
    (tmp_path / "photos").mkdir()
    for name in ("photo.jpg", "street.jpg", "photos/a.png", "photos/b.png"):
        picture().save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def first_python(page: Path) -> str:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)[0]


@pytest.mark.parametrize("page", [README, PAGE], ids=lambda page: page.stem)
def test_the_first_lines_of_python_draw_a_picture(page: Path, folder: Path, capsys) -> None:
    lines = first_python(page).replace("mask2former_R50_coco", "output/demo/mask2former")
    exec(lines, {})
    assert (folder / "drawn.png").is_file()
    printed = capsys.readouterr().out
    assert ("PanopticResult of street.jpg, 64 x 48" in printed) == (page is README)
    assert ("a.png" in printed) == (page is PAGE)


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 4


@pytest.mark.slow
@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_predict(line: str, folder: Path, capsys) -> None:
    words = shlex.split(
        line.replace("mask2former_R50_coco", "output/demo/mask2former"), comments=True
    )
    # The tiny run has other classes, and its scores are low.
    words = [{"circle": "disc", "square": "sky", "clip.mp4": "photo.jpg"}.get(w, w) for w in words]
    assert predict.main([*words[2:], "--confidence-threshold", "0.01"]) == 0
    assert "0 failed" in "".join(capsys.readouterr())


def test_every_kind_of_source_is_in_the_table(tiny_entry: ZooEntry, folder: Path) -> None:
    model_zoo.add(Path(tiny_entry.path))
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index("| source |") : text.index("A config in memory")]
    for name in re.findall(r"`([\w./-]+)`", table):
        if name not in ("OUTPUT_DIR", "MODEL.WEIGHTS", "transformers", "owner/name"):
            find_model(name)
