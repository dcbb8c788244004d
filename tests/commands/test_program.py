"""The program panoptic-ext, `python -m panoptic_ext`, and the scripts that run one command."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import panoptic_ext_cli
from panoptic_ext.commands.command_line import program_name
from panoptic_ext_cli import ALIASES, COMMANDS, module_of
from tests import PATIENCE, ROOT

SCRIPTS = {
    "train": "train_net.py",
    "evaluate": "tools/evaluate_panoptic.py",
    "combine": "tools/combine_predictions.py",
    **{
        name: f"tools/{module_of(name).rpartition('.')[2]}.py"
        for name in COMMANDS
        if name not in ("train", "evaluate", "combine")
    },
}
"""The script of a checkout that runs each command."""

MODULES = [path.stem for path in (ROOT / "panoptic_ext" / "commands").glob("[a-z]*.py")]
HELPERS = {"command_line", "drawing_options"}


def run(*words: str, path: Path = ROOT, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run(
        [sys.executable, *words], env=env, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE
    )


def fake_torch(folder: Path, text: str) -> Path:
    """A folder for sys.path whose torch runs `text`."""
    (folder / "torch.py").write_text(text)
    return folder


def test_pillow_suspects_no_attack_in_a_large_picture_that_the_user_named(tmp_path: Path) -> None:
    """16 pixels are between Pillow's limit, here 10, and twice as many, where it refuses."""
    picture = tmp_path / "large.png"
    Image.new("RGB", (4, 4)).save(picture)
    open_it = (
        f"from PIL import Image; Image.MAX_IMAGE_PIXELS = 10; Image.open({str(picture)!r}).close()"
    )
    assert "DecompressionBombWarning" in run("-c", open_it).stderr
    with_filters = run("-W", "error", "-c", f"import panoptic_ext_cli; {open_it}")
    assert (with_filters.returncode, with_filters.stderr) == (0, "")


def test_every_command_has_a_module_and_a_script() -> None:
    modules = [module_of(name).removeprefix("panoptic_ext.commands.") for name in COMMANDS]
    assert sorted(modules) == sorted(set(MODULES) - HELPERS)
    assert sorted(SCRIPTS) == sorted(COMMANDS)
    for name in COMMANDS:
        module = importlib.import_module(module_of(name))
        assert module.main.__annotations__["return"] == "int", name
    scripts = {f"tools/{path.name}" for path in (ROOT / "tools").glob("*.py")} | {"train_net.py"}
    without_command = {"__init__.py", "install_detectron2.py", "pack_wheels.py"}
    assert scripts - set(SCRIPTS.values()) == {f"tools/{name}" for name in without_command}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panoptic_ext_cli, "prepare", lambda name: None)  # for a new process
    with pytest.raises(SystemExit) as ended:
        panoptic_ext_cli.main([*name.split(), "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: {program_name(name)} ")
    assert f"    panoptic-ext {name} " in printed  # an example


def test_the_list_of_commands_loads_neither_torch_nor_the_package(tmp_path: Path) -> None:
    path = fake_torch(tmp_path, "raise SystemExit('torch was loaded')")
    program = str(ROOT / "panoptic_ext_cli.py")
    done = run(program, "--help", path=path)
    assert done.returncode == 0, done.stderr
    for name, text in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", done.stdout, re.MULTILINE)
    unknown = run(program, "evalute", "--gt", "x", path=path)
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr.startswith("error: unknown command 'evalute'; did you mean 'evaluate'?")
    nothing = run(program, path=path)
    assert nothing.returncode == 2 and nothing.stderr.endswith("error: no command given\n")


def test_a_group_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert panoptic_ext_cli.main(["data", "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: panoptic-ext data COMMAND")
    assert re.search(r"^  convert +convert labels", printed, re.MULTILINE)
    assert "train or resume" not in printed
    assert panoptic_ext_cli.main(["data"]) == 2
    assert capsys.readouterr().err.endswith("error: no command given\n")
    assert panoptic_ext_cli.main(["data", "chek"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "error: unknown command 'data chek'; did you mean 'check'? known: check"
    )


@pytest.mark.parametrize(("former", "name"), ALIASES.items())
def test_former_names_go_on_working(
    former: str, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panoptic_ext_cli, "prepare", lambda name: None)
    with pytest.raises(SystemExit):
        panoptic_ext_cli.main([former, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: {program_name(name)} ")


def test_a_command_with_underscores_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert panoptic_ext_cli.main(["check_data"]) == 2
    assert "did you mean 'check-data'?" in capsys.readouterr().err


def test_a_list_of_which_the_beginning_is_read_ends_without_a_word() -> None:
    command = [sys.executable, "-m", "panoptic_ext", "zoo", "list"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE


def test_python_m_runs_the_program() -> None:
    done = run("-m", "panoptic_ext", "compare-runs", "--output", "x.svg", "a=nowhere")
    assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
    assert run("-m", "panoptic_ext", "--help").stdout.startswith("usage: panoptic-ext COMMAND")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_script_runs_its_command_in_a_checkout_that_is_not_installed(
    name: str, tmp_path: Path
) -> None:
    """From any folder, beside another package `tools`; a fake package prints its arguments."""
    for part in ("tools", "checkout"):
        (tmp_path / part).mkdir()
    (tmp_path / "tools" / "__init__.py").write_text("raise SystemExit('tools of someone else')")
    checkout, other = tmp_path / "checkout", tmp_path / "other"
    for folder, words in ((checkout, "of the checkout"), (other, "of another installation")):
        package = folder / "panoptic_ext" / "commands"
        package.mkdir(parents=True)
        for init in (package.parent, package):
            (init / "__init__.py").touch()
        (package / f"{module_of(name).rpartition('.')[2]}.py").write_text(
            f"def main(argv):\n    print({words!r}, argv)\n    return 7\n"
        )
    for file in ("panoptic_ext_cli.py", SCRIPTS[name]):
        (checkout / file).parent.mkdir(exist_ok=True)
        (checkout / file).write_text((ROOT / file).read_text())
    path = f"{tmp_path}{os.pathsep}{other}"
    done = run(str(checkout / SCRIPTS[name]), "--a", "B", path=Path(path), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (7, "of the checkout ['--a', 'B']\n"), done.stderr


@pytest.mark.parametrize("script", sorted(SCRIPTS.values()))
def test_ctrl_c_while_a_command_loads_prints_nothing(script: str, tmp_path: Path) -> None:
    """Torch takes seconds to load, and interrupting an import prints a traceback."""
    text = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit('there')\n"
    done = run(str(ROOT / script), path=fake_torch(tmp_path, text))
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_ctrl_c_while_python_m_loads_prints_nothing(tmp_path: Path) -> None:
    text = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit('there')\n"
    path = f"{fake_torch(tmp_path, text)}{os.pathsep}{ROOT}"
    done = run("-m", "panoptic_ext", "predict", path=Path(path), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_threads_of_a_training_wait_without_spinning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch reads OMP_WAIT_POLICY when it loads; a value of the user stays."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    text = "import os, sys\nsys.exit(os.environ.get('OMP_WAIT_POLICY', 'not set'))"
    path = fake_torch(tmp_path, text)
    assert run(str(ROOT / "train_net.py"), path=path).stderr == "passive\n"
    both = Path(f"{path}{os.pathsep}{ROOT}")
    assert run("-m", "panoptic_ext", "train", path=both, cwd=tmp_path).stderr == "passive\n"
    assert run(str(ROOT / "tools" / "predict.py"), path=path).stderr == "not set\n"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert run(str(ROOT / "train_net.py"), path=path).stderr == "active\n"


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("/usr/bin/panoptic-ext", "panoptic-ext predict"),
        ("/site/panoptic_ext/__main__.py", "python -m panoptic_ext predict"),
        ("/checkout/tools/predict.py", "predict.py"),
    ],
)
def test_the_usage_line_shows_how_a_command_was_started(
    monkeypatch: pytest.MonkeyPatch, script: str, name: str
) -> None:
    monkeypatch.setattr(sys, "argv", [script])
    assert program_name("predict") == name
    assert argparse.ArgumentParser(prog=name).format_usage().startswith(f"usage: {name} ")
