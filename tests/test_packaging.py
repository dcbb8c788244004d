"""What a wheel of this package holds, what its metadata asks for, and that it runs by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
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
    assert set(found.get_all("Provides-Extra")) == {"all", "dev", "docs", "hf", "timm"}
    required = [line for line in found.get_all("Requires-Dist") if "extra ==" not in line]
    assert "torch>=2.4" in required
    assert not any(line.startswith(("detectron2", "pb1")) for line in required)


class Installation:
    """A wheel in an environment that has no checkout of this repository."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder = folder
        venv.create(folder / "venv")
        python = folder / "venv" / "bin" / "python"
        # The libraries are those of this environment. A folder named by a .pth comes after the
        # environment's own, and the .pth files in it, such as that of an editable install of this
        # repository, are not read.
        names = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
        site_packages = Path(sysconfig.get_path("purelib", "venv", names))
        shared = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (site_packages / "shared.pth").write_text("\n".join(sorted(shared)))
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


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel_file: Path) -> Installation:
    return Installation(tmp_path_factory.mktemp("installed"), wheel_file)


def test_every_command_of_an_installed_wheel_has_help(installed: Installation) -> None:
    listed = installed.run(installed.program, "--help")
    assert all(f"\n  {name} " in listed for name in COMMANDS)
    # In one process: torch takes seconds to load.
    code = f"""
import panoptic_ext, panoptic_ext_cli
print(panoptic_ext.__file__)
for name in {list(COMMANDS)!r}:
    try:
        panoptic_ext_cli.main([name, "--help"])
    except SystemExit as ended:
        assert ended.code == 0, name
"""
    printed = installed.run(installed.python, "-c", code)
    assert printed.startswith(str(installed.package / "__init__.py"))
    assert printed.count("usage: ") == len(COMMANDS)


def test_an_installed_wheel_does_everything_without_a_checkout(installed: Installation) -> None:
    """The demo trains, draws and predicts; then data, predictions and evaluation of its run."""
    cache = installed.folder / "cache"
    options = [*SMALL, "DATASETS.SHAPES.CACHE", str(cache)]
    printed = installed.run(installed.program, "demo", "--output", "demo", *options)
    assert "done in" in printed and (installed.folder / "demo" / "model_final.pth").is_file()

    config = ["--config-file", "demo/config.yaml"]
    assert "good" in installed.run(installed.program, "check-data", *config)
    (truth,) = cache.rglob("*val*.json")
    images = [str(path) for path in cache.rglob("*.jpg") if "val" in str(path)]
    predict = ["--config-file", "demo", "--input", *images, "--output", "drawn", "--save-panoptic"]
    assert f"{len(images)} predicted" in installed.run(installed.program, "predict", *predict)
    evaluate = ["--gt", str(truth), "--gt-root", str(truth.parent / "panoptic")]
    evaluate += ["--pred", "drawn/panoptic.json", "--pred-root", "drawn/panoptic"]
    table = installed.run(installed.program, "evaluate", *evaluate)
    assert "**All**" in table


def test_a_config_of_the_wheel_is_found_by_its_name(installed: Installation) -> None:
    name = "shapes/panoptic_fpn/panoptic_fpn_R18_shapes.yaml"
    options = [*SMALL, "DATASETS.SHAPES.CACHE", str(installed.folder / "cache")]
    options += ["OUTPUT_DIR", "dry"]
    printed = installed.run(
        installed.program, "train", "--config-file", name, "--dry-run", *options
    )
    assert "Dry run:" in printed
    name = "coco/mask2former/none.yaml"
    error = installed.run(installed.program, "train", "--config-file", name, code=2)
    assert str(installed.package / "configs" / name) in error
    assert str(installed.folder / name) in error
