"""What a wheel of this package holds, what its metadata asks for, and that it runs by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from panoptic_ext_cli import COMMANDS
from tests import PATIENCE, ROOT
from tests.commands.test_demo import SMALL

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, so that the working tree gets no build folder."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in ("panoptic_ext", "configs", "tests", "tools"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (
        "panoptic_ext_cli.py",
        "setup.py",
        "pyproject.toml",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
    ):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    result = subprocess.run(
        [*command, "--wheel-dir", out, copy], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    (path,) = out.glob("panoptic_ext-*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(wheel_file: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(wheel_file)


def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


def test_wheel_has_every_config_and_module(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    yaml = {f"panoptic_ext/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert yaml and yaml <= names
    entries = {str(path.relative_to(ROOT)) for path in (ROOT / "panoptic_ext").rglob("*.yaml")}
    assert len(entries) > 50 and entries <= names
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "panoptic_ext").rglob("*.py")}
    assert modules <= names, "a package without __init__.py?"
    assert "panoptic_ext/py.typed" in names  # type checkers of users read our annotations


def test_wheel_has_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "panoptic_ext",
        "panoptic_ext_cli.py",
    }


def test_metadata(wheel: zipfile.ZipFile) -> None:
    found = metadata(wheel)
    assert found["Name"].replace("-", "_") == "panoptic_ext"
    assert found["Requires-Python"] == ">=3.10"
    extras = {"all", "dev", "docs", "fiftyone", "hf", "mlflow", "pretrained", "results", "timm"}
    extras.add("wandb")
    assert set(found.get_all("Provides-Extra")) == extras
    required = [line for line in found.get_all("Requires-Dist") if "extra ==" not in line]
    assert "torch>=2.4" in required
    assert not any(line.startswith(("detectron2", "pb1")) for line in required)


class Installation:
    """A wheel in an environment that has no checkout of this repository."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder = folder
        venv.create(folder / "venv")
        python = folder / "venv" / "bin" / "python"
        (site_packages,) = (folder / "venv").glob("lib/python*/site-packages")
        # The libraries are those of this environment. A folder named by a .pth comes after the
        # environment's own, and the .pth files in it, such as that of an editable install of this
        # repository, are not read.
        shared = [path for path in sys.path if os.path.isdir(path)]
        shared = [path for path in shared if not os.path.exists(f"{path}/panoptic_ext")]
        (site_packages / "shared.pth").write_text("\n".join(shared))
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
        done = subprocess.run(
            [*pip, "--no-deps", "--no-index", str(wheel)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        self.package = site_packages / "panoptic_ext"
        self.python, self.program = python, python.parent / "panoptic-ext"

    def run(self, program: Path, *words: str, code: int = 0) -> str:
        """Run a program in the folder, where nothing is; what it printed."""
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [str(program), *words],
            cwd=self.folder,
            env={**env, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def call(self, *commands: tuple[Sequence[str], int]) -> str:
        """Run several commands in one process, as torch takes seconds to load.

        Args:
            commands: words of the program and the exit code that is due.
        """
        code = f"""
import panoptic_ext, panoptic_ext_cli
print("package:", panoptic_ext.__file__)
for words, due in {[(list(words), code) for words, code in commands]!r}:
    try:
        code = panoptic_ext_cli.main(words)
    except SystemExit as ended:
        code = ended.code
    assert code == due, (words, code)
"""
        return self.run(self.python, "-c", code)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel_file: Path) -> Installation:
    return Installation(tmp_path_factory.mktemp("installed"), wheel_file)


@pytest.fixture(scope="module")
def demo(installed: Installation) -> str:
    """What the demo prints; it trains, draws the data and predicts."""
    cache = ["DATASETS.SHAPES.CACHE", str(installed.folder / "cache")]
    return installed.run(installed.program, "demo", "--output", "demo", *SMALL, *cache)


def test_an_installed_program_lists_its_commands_and_runs_the_demo(
    installed: Installation, demo: str
) -> None:
    listed = installed.run(installed.program, "--help")
    assert all(f"\n  {name} " in listed for name in COMMANDS)
    assert "done in" in demo and (installed.folder / "demo" / "model_final.pth").is_file()


def test_every_command_of_an_installed_wheel_runs_without_a_checkout(
    installed: Installation, demo: str
) -> None:
    """Help of all; a config by its name; then the data and the model of the demo."""
    cache = installed.folder / "cache"
    (truth,) = cache.rglob("*val*.json")
    images = [str(path) for path in truth.parent.rglob("*.jpg")]
    run = ["--config-file", "demo/config.yaml"]
    shapes = ["--config-file", "shapes/panoptic_fpn/panoptic_fpn_R18_shapes.yaml", "--dry-run"]
    options = [*SMALL, "DATASETS.SHAPES.CACHE", str(cache), "OUTPUT_DIR", "dry"]
    drawn = ["--input", *images, "--output", "drawn", "--save-panoptic"]
    files = ["--gt", str(truth), "--gt-root", str(truth.parent / "panoptic")]
    files += ["--pred", "drawn/panoptic.json", "--pred-root", "drawn/panoptic"]
    missing = "coco/mask2former/none.yaml"
    printed = installed.call(
        *(([*name.split(), "--help"], 0) for name in COMMANDS),
        (["data", "check", *run], 0),
        (["predict", *run, *drawn], 0),
        (["evaluate", *files], 0),
        (["train", *shapes, *options], 0),
        (["train", "--config-file", missing], 2),
        (["zoo", "info", "mask2former_R50_coco"], 0),
    )
    assert printed.startswith(f"package: {installed.package}{os.sep}")
    assert printed.count("usage: ") == len(COMMANDS)
    for text in ("good, 3 images", f"{len(images)} predicted", "**All**", "Dry run:"):
        assert text in printed
    for place in (installed.folder, installed.package / "configs"):
        assert str(place / missing) in printed
