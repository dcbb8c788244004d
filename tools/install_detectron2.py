#!/usr/bin/env python3
"""Install Detectron2 v0.6 from PyPI's source distribution, patched for current dependencies.

Does nothing but say so where `import detectron2` already works (v0.6 or newer). Otherwise it
fetches the sources through pip (so mirrors and proxies set for pip are used), verifies their
sha256, applies the changes of tools/detectron2_patches, and installs the result and what it needs.
Needs torch and torchvision in the environment, and nothing but the standard library itself.

    python tools/install_detectron2.py                       # into this Python's environment
    python tools/install_detectron2.py --archive FILE        # from a file fetched elsewhere
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

sys.path.insert(0, str(Path(__file__).resolve().parent))

from detectron2_patches import DEPENDENCIES, PatchError, apply_changes

REQUIREMENT = "pb1-detectron2==0.6"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
# The newest pip that accepts a distribution whose metadata names a direct URL in an extra.
LAST_LENIENT_PIP = "pip<=26.0"
SETUPTOOLS = "setuptools>=70.1"
_MAX_UNPACKED = 200 * 2**20  # bytes; the true archive holds under 5 MiB

# Run in a process of its own, in an empty folder: a failing import cannot disturb this one, and a
# source checkout of Detectron2 in the current folder is not taken for an installed one.
_PROBE = """
import importlib, importlib.util, json
found = {}
for name in ("torch", "torchvision", "setuptools", "cv2", "detectron2", "detectron2.layers"):
    try:
        found[name] = [True, str(getattr(importlib.import_module(name), "__version__", ""))]
    except ModuleNotFoundError as error:
        missing = error.name == name or name.startswith(f"{error.name}.")
        found[name] = [False, "" if missing else str(error)]
    except Exception as error:
        found[name] = [False, f"{type(error).__name__}: {error}"]
# Building without isolation needs bdist_wheel, which setuptools has by itself since 70.1.
wheels = ("setuptools.command.bdist_wheel", "wheel")
if found["setuptools"][0] and not any(map(importlib.util.find_spec, wheels)):
    found["setuptools"][0] = False
print("probe:" + json.dumps(found))
"""
_CHECK = """
import detectron2.data, detectron2.engine, detectron2.evaluation, detectron2.modeling
from detectron2 import model_zoo
from detectron2.projects import deeplab, point_rend
model_zoo.get_config_file("COCO-PanopticSegmentation/panoptic_fpn_R_50_3x.yaml")
"""


class InstallError(Exception):
    """Something the user can mend; printed as one message without a traceback."""


def say(message: str) -> None:
    """Print one line of progress."""
    print(f"[detectron2] {message}", flush=True)


def run(
    command: Sequence[str], *, cwd: Path | None = None, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `command` with its output captured; `path` is put in front of PYTHONPATH."""
    environment = dict(os.environ)
    if path is not None:
        old = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = str(path) + (os.pathsep + old if old else "")
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def run_pip(
    arguments: Sequence[str], *, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m pip` of this environment, without questions and version notices."""
    flags = ["--disable-pip-version-check", "--no-input"]
    return run([sys.executable, "-m", "pip", *arguments, *flags], path=path)


def last_error(result: subprocess.CompletedProcess[str]) -> str:
    """The line of a failed command's output that most likely tells why."""
    lines = [line.strip() for line in f"{result.stdout}\n{result.stderr}".splitlines()]
    lines = [line for line in lines if line]
    marked = [line for line in lines if "error" in line.lower() and "warning" not in line.lower()]
    return (marked or lines or [f"exit code {result.returncode}"])[-1].removeprefix("ERROR: ")


def probe() -> dict[str, tuple[bool, str]]:
    """What this environment imports: name -> (works, version, or why not; "" where missing)."""
    with tempfile.TemporaryDirectory() as empty:
        result = run([sys.executable, "-c", _PROBE], cwd=Path(empty))
    for line in result.stdout.splitlines():
        if line.startswith("probe:"):
            return {name: (ok, text) for name, (ok, text) in json.loads(line[6:]).items()}
    raise InstallError(f"{sys.executable} cannot import torch or detectron2: {last_error(result)}")


def is_new_enough(version: str) -> bool:
    """Whether `version` of Detectron2 is 0.6 or newer."""
    numbers = []
    for part in version.split("+")[0].split(".")[:2]:
        digits = "".join(c for c in part if c.isdigit())
        numbers.append(int(digits) if digits else 0)
    return numbers >= [0, 6]


def already_installed(found: dict[str, tuple[bool, str]]) -> bool:
    """Whether a Detectron2 that this project can use is there.

    Raises:
        InstallError: one is there, and it is too old or cannot be imported.
    """
    works, text = found["detectron2"]
    if works and not is_new_enough(text):
        raise InstallError(
            f"Detectron2 {text or 'of unknown version'} is installed, and 0.6 or newer is needed; "
            "update it, or remove it (python -m pip uninstall detectron2) and run this again"
        )
    broken = text if not works else found["detectron2.layers"][1]
    if works and found["detectron2.layers"][0]:
        return True
    if broken:
        raise InstallError(
            f"Detectron2 is installed but cannot be imported: {broken}; repair it, or remove it "
            "(python -m pip uninstall detectron2) and run this again"
        )
    return False


def need_torch(found: dict[str, tuple[bool, str]]) -> None:
    """Raise InstallError unless torch and torchvision import."""
    for name in ("torch", "torchvision"):
        works, why = found[name]
        if not works:
            raise InstallError(
                f"Detectron2 needs {name}, and {sys.executable} "
                f"{f'cannot import it: {why}' if why else 'does not have it'}; install a matching "
                "pair first, e.g. python -m pip install torch==2.14.1 torchvision==0.29.1"
            )


def verify(archive: Path, sha256: str) -> None:
    """Raise InstallError unless the file `archive` has the checksum `sha256` (hexadecimal)."""
    try:
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
    except OSError as error:
        raise InstallError(f"cannot read the archive {archive}: {error.strerror}") from error
    if found != sha256.lower():
        raise InstallError(
            f"wrong checksum of {archive.name}: found sha256 {found}, expected {sha256}; the file "
            f"is damaged or is not {REQUIREMENT}, and nothing of it was run; fetch it again"
        )


def download(folder: Path, sha256: str) -> Path:
    """Fetch the source distribution into `folder` through pip; its path.

    pip verifies the checksum before it runs the archive's setup.py for its metadata.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{sha256}\n", encoding="utf-8")
    arguments = ["download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    arguments += ["--require-hashes", "--dest", str(folder), "--requirement", str(requirements)]
    result = run_pip(arguments)
    if result.returncode and "direct URL" in result.stderr:
        say(f"this pip refuses the archive's optional direct URL: using {LAST_LENIENT_PIP} for it")
        result = run_pip(arguments, path=_lenient_pip(folder / "pip"))
    if result.returncode:
        raise InstallError(_download_failure(result, sha256))
    archives = sorted(folder.glob("pb1*.tar.gz"))
    if len(archives) != 1:
        raise InstallError(f"pip left {len(archives)} archives of {REQUIREMENT}, expected one")
    return archives[0]


def _lenient_pip(folder: Path) -> Path:
    """Install an older pip into `folder`, for this run only; the environment's own one stays."""
    result = run_pip(["install", "--quiet", "--target", str(folder), LAST_LENIENT_PIP])
    if result.returncode:
        raise InstallError(
            f"pip is too new: it refuses the optional direct URL of {REQUIREMENT}, and "
            f"{LAST_LENIENT_PIP!r} could not be fetched ({last_error(result)}); run "
            f"python -m pip install '{LAST_LENIENT_PIP}' and then this again"
        )
    return folder


def _download_failure(result: subprocess.CompletedProcess[str], sha256: str) -> str:
    if "No module named pip" in result.stderr:
        return f"{sys.executable} has no pip; run {sys.executable} -m ensurepip and then this again"
    if "DO NOT MATCH THE HASHES" in result.stderr:
        got = [
            line.split()[-1] for line in result.stderr.splitlines() if line.split()[:1] == ["Got"]
        ]
        return (
            f"wrong checksum of {REQUIREMENT}: found sha256 {' '.join(got)}, expected {sha256}; "
            "the package index serves another file, and nothing of it was run"
        )
    return (
        f"pip could not fetch {REQUIREMENT}: {last_error(result)}; check the network and pip's "
        "settings (pip config list), or fetch the file elsewhere and pass it with --archive FILE"
    )


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack `archive` below `folder`; the one folder that it holds.

    Raises:
        InstallError: not a tar archive, or a member that is no plain file or folder, or that
            would land outside of `folder`.
    """
    total = 0
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                total += member.size
                _unpack_member(tar, member, folder)
                if total > _MAX_UNPACKED:
                    raise InstallError(f"{archive.name} unpacks to over {_MAX_UNPACKED} bytes")
    except (tarfile.TarError, EOFError, OSError) as error:
        why = str(error).splitlines()[0].rstrip(":") if str(error) else type(error).__name__
        raise InstallError(f"cannot unpack {archive.name}: {why}") from error
    roots = [path for path in folder.iterdir() if path.is_dir()]
    if len(roots) != 1:
        raise InstallError(f"{archive.name} holds {len(roots)} top folders, expected one")
    return roots[0]


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\\" in member.name or ":" in member.name:
        raise InstallError(f"the archive's member {member.name!r} points outside of the archive")
    target = folder.joinpath(*name.parts)
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    source = tar.extractfile(member) if member.isreg() else None
    if source is None:
        raise InstallError(f"the archive's member {member.name!r} is no plain file or folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read())


def patch(tree: Path) -> None:
    """Apply every change to the unpacked sources and say which."""
    try:
        for change, count in apply_changes(tree):
            say(f"  {change.name} ({count}): {change.reason}")
    except PatchError as error:
        raise InstallError(f"{error}; the archive is not the one the patches are for") from error


def install(tree: Path, *, target: Path | None, has_cv2: bool, has_setuptools: bool) -> None:
    """Install the patched sources, and (unless into a `target` folder) what they need."""
    if target is None:
        say("installing what it needs")
        # Its Visualizer imports cv2; any of OpenCV's four distributions serves.
        extra = [] if has_cv2 else ["opencv-python-headless"]
        extra += [] if has_setuptools else [SETUPTOOLS]
        result = run_pip(["install", "--quiet", *DEPENDENCIES, *extra])
        if result.returncode:
            raise InstallError(f"pip could not install what Detectron2 needs: {last_error(result)}")
    say("installing")
    arguments = ["install", "--no-deps", "--no-build-isolation", str(tree)]
    result = run_pip(arguments + ([] if target is None else ["--target", str(target)]))
    if result.returncode:
        raise InstallError(f"pip could not install the patched sources: {last_error(result)}")


def check(target: Path | None) -> None:
    """Import the installed package in a fresh process."""
    with tempfile.TemporaryDirectory() as empty:
        result = run([sys.executable, "-c", _CHECK], cwd=Path(empty), path=target)
    if result.returncode:
        raise InstallError(f"installed, but importing it fails: {last_error(result)}")


def fetch_and_install(args: argparse.Namespace, found: dict[str, tuple[bool, str]]) -> None:
    """Everything after it is clear that Detectron2 is wanted."""
    with tempfile.TemporaryDirectory(prefix="detectron2-") as name:
        folder = Path(name)
        if args.archive is None and not found["setuptools"][0]:
            run_pip(["install", "--quiet", SETUPTOOLS])
        if args.archive is None:
            say(f"fetching {REQUIREMENT}")
            archive = download(folder, args.sha256)
        else:
            archive = Path(args.archive)
        verify(archive, args.sha256)
        tree = unpack(archive, _new_folder(folder / "source"))
        say("patching")
        patch(tree)
        install(
            tree,
            target=args.target,
            has_cv2=found["cv2"][0],
            has_setuptools=found["setuptools"][0],
        )
    if not args.no_check:
        check(args.target)
    say(f"Detectron2 v0.6 is installed{f' in {args.target}' if args.target else ''}")


def _new_folder(path: Path) -> Path:
    path.mkdir()
    return path


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Install Detectron2 v0.6 (from PyPI's sources, patched) where it is missing."
    )
    parser.add_argument("--archive", help="install this file instead of fetching it with pip")
    parser.add_argument("--sha256", default=SHA256, help="expected checksum of the archive")
    parser.add_argument(
        "--target", type=Path, help="install into this folder, without dependencies"
    )
    parser.add_argument("--force", action="store_true", help="install even where it is there")
    parser.add_argument("--no-check", action="store_true", help="do not import it afterwards")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code: 0 done, 2 an error that the user can mend."""
    args = parse_arguments(arguments)
    try:
        found = probe()
        if not args.force and already_installed(found):
            say(f"Detectron2 {found['detectron2'][1]} is there: nothing to do")
            return 0
        need_torch(found)
        fetch_and_install(args, found)
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
