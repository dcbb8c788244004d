"""What a wheel of this package holds, and what its metadata asks for."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser

import pytest

from tests import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from a copy, so that the working tree gets no build folder."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in ("panoptic_ext", "configs", "tests", "tools"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    result = subprocess.run(
        [*command, "--wheel-dir", out, copy], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    (path,) = out.glob("panoptic_ext-*.whl")
    return zipfile.ZipFile(path)


def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


def test_wheel_has_every_config_and_module(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    yaml = {f"panoptic_ext/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert yaml and yaml <= names
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "panoptic_ext").rglob("*.py")}
    assert modules <= names, "a package without __init__.py?"


def test_wheel_has_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"panoptic_ext"}


def test_metadata(wheel: zipfile.ZipFile) -> None:
    found = metadata(wheel)
    assert found["Name"].replace("-", "_") == "panoptic_ext"
    assert found["Requires-Python"] == ">=3.10"
    assert set(found.get_all("Provides-Extra")) == {"all", "dev", "docs", "hf", "timm"}
    required = [line for line in found.get_all("Requires-Dist") if "extra ==" not in line]
    assert "torch>=2.4" in required
    assert not any(line.startswith(("detectron2", "pb1")) for line in required)
