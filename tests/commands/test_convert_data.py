"""The command data convert: its options, what it prints, its exit codes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from panoptic_ext.commands import convert_data
from panoptic_ext.data.convert import SOURCES, TARGETS
from tests import ROOT
from tests.data.convert.cases import picture, read_result
from tests.data.convert.test_labelme import corners, labelled, shape


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "labelled"
    picture(root / "a.jpg")
    sky = shape("sky", corners(0, 0, 16, 6))
    shapes = [sky, shape("car", corners(1, 1, 3, 3)), shape("ignore", corners(5, 1, 7, 3))]
    labelled(root / "a.json", shapes, "a.jpg")
    return root


def run(*words: object) -> int:
    return convert_data.main([str(word) for word in words])


def test_options_reach_the_conversion(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--things", "car", "--void", "ignore", "--uncovered", "sky", "--name", "street"]
    assert run(folder, "--output", out, *options, "--overlap", "area", "--min-area", 2) == 0
    printed = capsys.readouterr().out
    assert f"result: {out}" in printed and "street:" in printed
    assert "1 image, 2 segments, 2.1% of the pixels void; overlaps: the smaller object" in printed
    _, maps = read_result(out)
    assert (maps["a.jpg"] == "sky").sum() == 12 * 16 - 4 - 4
    assert run(folder, "--output", out, *options) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(folder, "--output", out, *options, "--overwrite") == 0


def test_a_file_of_classes(folder: Path, tmp_path: Path) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("sky, stuff, 9\ncar, thing, 4\nbus, thing, 5\n")
    out = tmp_path / "out"
    assert run(folder, "--output", out, "--classes", classes) == 2
    assert run(folder, "--output", out, "--classes", classes, "--leave-out", "ignore") == 0
    content, _ = read_result(out)
    assert [(c["id"], c["name"]) for c in content["categories"]] == [
        (9, "sky"),
        (4, "car"),
        (5, "bus"),
    ]


def test_without_a_terminal_the_error_proposes_a_command(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "--output", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: which of these classes are things") and "--things car" in error


def test_on_a_terminal_there_is_a_question(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal("cra\ncar\n"))
    monkeypatch.setattr("sys.stderr", screen := Terminal())
    assert run(folder, "--output", tmp_path / "out", "--workers", 1) == 0
    assert "classes: car, ignore, sky\nWhich of them are things" in screen.getvalue()
    assert "unknown class 'cra'; did you mean 'car'?" in screen.getvalue()
    content, _ = read_result(tmp_path / "out")
    assert [c["isthing"] for c in content["categories"]] == [1, 0, 0]


def test_images_that_fail_are_named_and_the_exit_code_is_1(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled(folder / "b.json", [shape("car", corners(0, 0, 2, 2))], "b.jpg")
    assert run(folder, "--output", tmp_path / "out", "--things", "car") == 1
    error = capsys.readouterr().err
    assert error.startswith("1 of 2 images could not be converted:\n  b.jpg: ")
    assert "does not exist" in error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--priority", "car", "--overlap", "area"], "--overlap priority needs --priority"),
        (["--overlap", "priority"], "--overlap priority needs --priority"),
        (["--priority", "cra"], "class of --priority 'cra'; did you mean 'car'"),
        (["--uncovered", "car"], "--uncovered car is a thing"),
        (["--classes", "nowhere.txt"], "nowhere.txt does not exist"),
        (["--png-root", "x"], "does not take --png-root"),
    ],
)
def test_options_that_do_not_fit(
    folder: Path,
    tmp_path: Path,
    options: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(folder, "--output", tmp_path / "out", "--things", "car", *options) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_documentation_has_every_format_and_option() -> None:
    page = (ROOT / "docs" / "data-convert.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in page for name in (*SOURCES, *TARGETS))
    source = Path(convert_data.__file__).read_text(encoding="utf-8")
    for word in page.replace("`", " ").replace("\n", " ").split():
        if word.startswith("--") and word.strip("-"):
            option = word.rstrip(".,;:)|")
            assert f'"{option}"' in source or option in ("--json", "--config-file"), option
