"""tools/pack_wheels.py without a network: which wheels it asks pip for, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import pack_wheels as tool


@pytest.fixture
def pip(monkeypatch):
    """Calls of pip, which finds a wheel of every package but of "pure" and "compiled"."""
    calls: list[list[str]] = []

    def run_pip(arguments, **_):
        calls.append(list(arguments))
        package = arguments[-1]
        if arguments[0] == "download":
            if package in ("pure", "compiled"):
                return SimpleNamespace(returncode=1, stdout="", stderr="ERROR: no wheel")
            folder = Path(arguments[arguments.index("-d") + 1])
            (folder / f"{package}-1-py3-none-any.whl").write_bytes(b"")
        else:
            tag = "cp311-cp311-linux_x86_64" if package == "compiled" else "py3-none-any"
            folder = Path(arguments[arguments.index("-w") + 1])
            (folder / f"{Path(package).name}-1-{tag}.whl").write_bytes(b"")
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    def download(folder, _sha256):
        (folder / "archive").write_bytes(b"")
        return folder / "archive"

    monkeypatch.setattr(tool, "run_pip", run_pip)
    monkeypatch.setattr(tool, "download", download)
    monkeypatch.setattr(tool, "verify", lambda archive, sha256: None)
    monkeypatch.setattr(tool, "unpack", lambda archive, folder: folder / "detectron2")
    monkeypatch.setattr(tool, "patch", lambda tree: None)
    return calls


def test_wheels_are_fetched_for_the_other_machine_and_pure_sources_built(pip, tmp_path, capsys):
    data = tmp_path / "facade"
    data.mkdir()
    (data / "image.jpg").write_bytes(b"x")
    folder = tmp_path / ".whl"
    options = ["--folder", str(folder), "--python", "3.12", "--data", str(data)]
    assert tool.main(["yacs", "pure", *options]) == 0
    assert sorted(path.name.split("-")[0] for path in folder.glob("*.whl")) == [
        "detectron2",
        "pure",
        "yacs",
    ]
    assert (folder / "data/facade/image.jpg").is_file()
    assert (folder / "commit.txt").is_file()
    first = pip[0]
    assert first[first.index("--python-version") + 1] == "3.12"
    assert "manylinux_2_28_x86_64" in first and "--only-binary=:all:" in first
    assert "3 wheels" in capsys.readouterr().out


def test_a_wheel_for_this_machine_alone_is_an_error(pip, tmp_path, capsys):
    assert tool.main(["compiled", "--folder", str(tmp_path / ".whl")]) == 2
    assert "only machines like this one" in capsys.readouterr().err
