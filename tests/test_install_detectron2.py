"""tools/install_detectron2.py on a small fake archive, and every error it can end with."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT

TOOLS = ROOT / "tools"
sys.path.insert(0, str(TOOLS))

import detectron2_patches as patches  # noqa: E402
import install_detectron2 as tool  # noqa: E402

PACKAGE = "pb1-detectron2-0.6"
# One file for every change, holding what it looks for, and what must be left alone.
SOURCES = {
    "setup.py": "raise RuntimeError('never run')\n",
    "projects/PointRend/point_rend/__init__.py": "",
    "projects/DeepLab/deeplab/__init__.py": "",
    "projects/Panoptic-DeepLab/panoptic_deeplab/__init__.py": "",
    "detectron2/__init__.py": '__version__ = "0.6"\n',
    "detectron2/projects/__init__.py": "",
    "detectron2/evaluation/__init__.py": "",
    "detectron2/evaluation/fast_eval_api.py": (
        "from detectron2 import _C\n\n\nclass COCOeval:\n    pass\n\n\n"
        "class COCOeval_opt(COCOeval):\n    pass\n"
    ),
    "detectron2/evaluation/coco_evaluation.py": (
        "from .fast_eval_api import COCOeval, COCOeval_opt\n\n\nclass COCOEvaluator:\n"
        "    def __init__(self, use_fast_impl=True):\n"
        "        self._use_fast_impl = use_fast_impl\n"
    ),
    "detectron2/evaluation/sem_seg_evaluation.py": (
        "import numpy as np\nKIND = (np.int, np.bool, np.float, np.int64, np.bool_, np.integer)\n"
    ),
    "detectron2/layers/mask_ops.py": "mask = np.array(mask, copy=False)\n",
    "detectron2/data/transform.py": "interp = Image.LINEAR\n",
    "detectron2/model_zoo/__init__.py": "",
    "detectron2/model_zoo/model_zoo.py": (
        "import os\nimport pkg_resources\n\n\ndef get_config_file(config_path):\n"
        "    return pkg_resources.resource_filename(\n"
        '        "detectron2.model_zoo", os.path.join("configs", config_path)\n    )\n'
    ),
    "detectron2/model_zoo/configs/COCO/one.yaml": "VERSION: 2\n",
    "detectron2/modeling/anchor_generator.py": "y, x = torch.meshgrid(shifts_y, shifts_x)\n",
    "detectron2/export/__init__.py": "from .api import *\n",
}


def make_archive(path: Path, sources: dict[str, str], *, prefix: str = PACKAGE) -> str:
    """Write `sources` as a .tar.gz; its sha256."""
    with tarfile.open(path, "w:gz") as tar:
        for name, text in sources.items():
            data = text.encode()
            member = tarfile.TarInfo(f"{prefix}/{name}" if prefix else name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_tree(folder: Path, sources: dict[str, str] = SOURCES) -> Path:
    for name, text in sources.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def found(**changes: tuple[bool, str]) -> dict[str, tuple[bool, str]]:
    """What `probe` says in an environment with torch and without Detectron2, but for `changes`."""
    there = dict.fromkeys(("torch", "torchvision", "setuptools", "cv2"), (True, "1.0"))
    missing = {"detectron2": (False, ""), "detectron2.layers": (False, "")}
    return there | missing | {name.replace("__", "."): value for name, value in changes.items()}


def finished(code: int = 0, stderr: str = "", stdout: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], code, stdout, stderr)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment with torch and without Detectron2, in which running pip is an error."""

    def no_pip(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"pip was run: {args}")

    monkeypatch.setattr(tool, "probe", found)
    monkeypatch.setattr(tool, "run_pip", no_pip)
    return monkeypatch


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the tool, which must end with exit code 2 and one message; the message."""
    assert tool.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    assert error.count("\n") == 1
    return error


def test_setuptools_that_cannot_build_wheels_is_replaced_first(
    bare: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python 3.11 ships 65.5: "invalid command 'bdist_wheel'"."""
    calls: list[list[str]] = []

    def pip(arguments: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(list(arguments))
        return finished(int(arguments[0] == "download"))

    bare.setattr(tool, "probe", lambda: found(setuptools=(False, "65.5.0")))
    bare.setattr(tool, "run_pip", pip)
    fails(capsys)
    assert calls[0] == ["install", "--quiet", "setuptools>=70.1"] and calls[1][0] == "download"


# Patching


def test_every_change_applies_once(tmp_path: Path) -> None:
    tree = make_tree(tmp_path)
    counts = {change.name: count for change, count in patches.apply_changes(tree)}
    assert len(counts) == len(patches.CHANGES)
    assert counts["numpy aliases"] == 3
    assert (
        "KIND = (int, bool, float, np.int64, np.bool_, np.integer)"
        in (tree / "detectron2/evaluation/sem_seg_evaluation.py").read_text()
    )
    assert "Image.BILINEAR" in (tree / "detectron2/data/transform.py").read_text()
    assert "np.asarray(mask)" in (tree / "detectron2/layers/mask_ops.py").read_text()
    assert not (tree / "setup.py").exists()
    assert (tree / "detectron2/projects/point_rend/__init__.py").exists()


def test_every_change_has_a_reason() -> None:
    assert all(len(change.reason) >= len("as point_rend") for change in patches.CHANGES)
    assert len({change.name for change in patches.CHANGES}) == len(patches.CHANGES)


@pytest.mark.parametrize("change", patches.CHANGES, ids=lambda change: change.name)
def test_change_without_a_place_is_an_error(change: patches.Change, tmp_path: Path) -> None:
    (tmp_path / "detectron2").mkdir()
    if isinstance(change, patches.AddFile):
        make_tree(tmp_path, {change.target: "here already"})
    with pytest.raises(patches.PatchError, match=change.name.replace("(", r"\(").rstrip(")")):
        change.apply(tmp_path)


def test_patched_sources_import_and_run(tmp_path: Path) -> None:
    tree = make_tree(tmp_path)
    patches.apply_changes(tree)
    code = (
        "from detectron2.evaluation import coco_evaluation as c, fast_eval_api as f\n"
        "assert f.COCOeval_opt is f.COCOeval\n"
        "assert c.COCOEvaluator()._use_fast_impl is False\n"
        "from detectron2.model_zoo import model_zoo\n"
        "print(open(model_zoo.get_config_file('COCO/one.yaml')).read())\n"
        "import detectron2.export\n"
    )
    result = tool.run([sys.executable, "-c", code], path=tree, cwd=tree)
    assert result.stdout.strip() == "VERSION: 2", result.stderr


def test_stand_in_says_what_is_missing_when_used() -> None:
    from detectron2_patches import _C

    with pytest.raises(NotImplementedError, match=r"_C\.nms_rotated is a compiled operator"):
        _C.nms_rotated(1, 2)
    with pytest.raises(AttributeError):
        _ = _C.never_heard_of
    assert _C.has_cuda() is False and "not built" in _C.get_compiler_version()


# Already there


@pytest.mark.parametrize("version", ["0.6", "0.6+cu111", "0.7.1", "1.0"])
def test_does_nothing_where_it_is_there(
    version: str, bare: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = found(detectron2=(True, version), detectron2__layers=(True, ""))
    bare.setattr(tool, "probe", lambda: there)
    assert tool.main([]) == 0
    assert f"Detectron2 {version} is there: nothing to do" in capsys.readouterr().out


def test_older_is_an_error(bare: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    bare.setattr(tool, "probe", lambda: found(detectron2=(True, "0.5")))
    assert "Detectron2 0.5 is installed, and 0.6 or newer is needed" in fails(capsys)


def test_broken_is_an_error(bare: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    broken = found(detectron2=(True, "0.6"), detectron2__layers=(False, "ImportError: _C.so"))
    bare.setattr(tool, "probe", lambda: broken)
    assert "installed but cannot be imported: ImportError: _C.so" in fails(capsys)


def test_probe_distinguishes_missing_from_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(tmp_path, {"torch.py": "import gone", "torchvision.py": "__version__ = '0.1'"})
    make_tree(tmp_path, {"detectron2/__init__.py": "__version__ = '0.6'"})
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = tool.probe()
    assert result["torch"] == (False, "No module named 'gone'")
    assert result["torchvision"] == (True, "0.1")
    assert result["detectron2"] == (True, "0.6")
    assert result["detectron2.layers"][0] is False


# Errors


def test_no_torch(bare: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    bare.setattr(tool, "probe", lambda: found(torch=(False, "")))
    error = fails(capsys)
    assert "needs torch" in error and "pip install torch" in error


def test_broken_torchvision(bare: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    bare.setattr(tool, "probe", lambda: found(torchvision=(False, "RuntimeError: nms")))
    assert "cannot import it: RuntimeError: nms" in fails(capsys)


@pytest.mark.usefixtures("bare")
def test_wrong_checksum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "a.tar.gz"
    sha256 = make_archive(archive, SOURCES)
    error = fails(capsys, "--archive", str(archive))
    assert f"found sha256 {sha256}" in error and f"expected {tool.SHA256}" in error


@pytest.mark.usefixtures("bare")
def test_missing_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(capsys, "--archive", str(tmp_path / "gone.tar.gz"))
    assert "cannot read the archive" in error and "No such file" in error


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("name", ["../out.py", "a/../../out.py", "/out.py", "a\\..\\out.py"])
def test_path_traversal(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "a.tar.gz"
    sha256 = make_archive(archive, {name: "bad"}, prefix="")
    error = fails(capsys, "--archive", str(archive), "--sha256", sha256)
    assert "points outside of the archive" in error
    assert not list(tmp_path.rglob("out.py"))


@pytest.mark.usefixtures("bare")
def test_link_in_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("a/link")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    error = fails(capsys, "--archive", str(archive), "--sha256", sha256)
    assert "'a/link' is no plain file or folder" in error


@pytest.mark.usefixtures("bare")
def test_not_an_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "a.tar.gz"
    archive.write_text("<html>")
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    error = fails(capsys, "--archive", str(archive), "--sha256", sha256)
    assert "cannot unpack a.tar.gz" in error


@pytest.mark.usefixtures("bare")
def test_other_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "a.tar.gz"
    other = {k: v.replace("Image.LINEAR", "Image.NEAREST") for k, v in SOURCES.items()}
    error = fails(capsys, "--archive", str(archive), "--sha256", make_archive(archive, other))
    assert "patch 'Image.LINEAR' found nothing to change" in error


PIP_FAILURES = {
    "no network": (
        "WARNING: Retrying\nERROR: No matching distribution found for pb1-detectron2==0.6",
        "No matching distribution found",
        "--archive FILE",
    ),
    "wrong checksum": (
        "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n  Expected sha256 aa\n  Got bb",
        "found sha256 bb",
        "nothing of it was run",
    ),
    "no pip": ("/usr/bin/python3: No module named pip", "has no pip", "-m ensurepip"),
}


@pytest.mark.parametrize("case", PIP_FAILURES)
def test_pip_fails(case: str, bare: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stderr, what, how = PIP_FAILURES[case]
    bare.setattr(tool, "run_pip", lambda *args, **kwargs: finished(1, stderr))
    error = fails(capsys)
    assert what in error and how in error


class NewPip:
    """Refuses the archive as pip 26.3 does, unless an older pip was put in front of it."""

    def __init__(self, archive: dict[str, str], *, can_fetch_older: bool = True) -> None:
        self.commands: list[tuple[str, Path | None]] = []
        self._archive = archive
        self._can_fetch_older = can_fetch_older

    def __call__(
        self, arguments: list[str], *, path: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        self.commands.append((arguments[0], path))
        if arguments[0] == "download":
            if path is None:
                return finished(1, "ERROR: Distributions from PyPI cannot declare direct URL ...")
            folder = Path(arguments[arguments.index("--dest") + 1])
            make_archive(folder / "pb1-detectron2-0.6.tar.gz", self._archive)
        if tool.LAST_LENIENT_PIP in arguments and not self._can_fetch_older:
            return finished(1, "ERROR: no connection")
        return finished()


def test_a_pip_that_is_too_new_is_replaced_by_an_older_one_for_the_download(
    bare: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pip = NewPip(SOURCES)
    bare.setattr(tool, "run_pip", pip)
    bare.setattr(tool, "verify", lambda *args: None)
    assert tool.main(["--no-check"]) == 0
    assert [name for name, _ in pip.commands] == [
        "download", "install", "download", "install", "install",
    ]  # fmt: skip
    assert [path is not None for _, path in pip.commands] == [False, False, True, False, False]
    assert "this pip refuses" in capsys.readouterr().out


def test_too_new_pip_without_an_older_one(
    bare: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bare.setattr(tool, "run_pip", NewPip(SOURCES, can_fetch_older=False))
    error = fails(capsys)
    assert "pip is too new" in error and "pip install 'pip<=26.0'" in error


def test_downloaded_file_is_verified_again(
    bare: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bare.setattr(tool, "run_pip", NewPip(SOURCES))
    assert "wrong checksum" in fails(capsys)
