"""What changes in the source distribution of Detectron2 v0.6 before it is installed, and why.

The sources on PyPI are the Python files of the tag v0.6, of 2021, without the C++ and CUDA files.
Each change below keeps their behaviour and makes them run with today's Python, torch, numpy, Pillow
and setuptools. A change that finds nothing to change is an error: the archive is then not the one
that these were written for.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CHANGES", "AddFile", "Change", "Move", "PatchError", "Replace", "apply_changes"]

_HERE = Path(__file__).resolve().parent


class PatchError(Exception):
    """A change does not fit the sources."""


@dataclass(frozen=True)
class Change:
    """One change to a source tree, with its name and the reason for it."""

    name: str
    reason: str

    def apply(self, root: Path) -> int:
        """Make the change below `root`; the number of places changed. Raises PatchError."""
        raise NotImplementedError


@dataclass(frozen=True)
class Replace(Change):
    """Replace every match of the regular expression `pattern` in the files of `glob`."""

    glob: str
    pattern: str
    replacement: str

    def apply(self, root: Path) -> int:
        """See Change."""
        total = 0
        for path in sorted(root.glob(self.glob)):
            old = path.read_text(encoding="utf-8")
            new, count = re.subn(self.pattern, self.replacement, old, flags=re.MULTILINE)
            if count:
                path.write_text(new, encoding="utf-8")
            total += count
        if not total:
            raise PatchError(
                f"patch {self.name!r} found nothing to change: no match of {self.pattern!r} in "
                f"{self.glob}"
            )
        return total


@dataclass(frozen=True)
class AddFile(Change):
    """Put a file that the sources lack at `target`."""

    target: str
    content: str

    def apply(self, root: Path) -> int:
        """See Change."""
        path = root / self.target
        if path.exists():
            raise PatchError(f"patch {self.name!r}: {self.target} exists already")
        if not path.parent.is_dir():
            raise PatchError(f"patch {self.name!r} found no folder for {self.target}")
        path.write_text(self.content, encoding="utf-8")
        return 1


@dataclass(frozen=True)
class Move(Change):
    """Move the file or folder `source` to `target`, or remove it where `target` is None."""

    source: str
    target: str | None

    def apply(self, root: Path) -> int:
        """See Change."""
        source = root / self.source
        if not source.exists():
            raise PatchError(f"patch {self.name!r} found nothing to change: no {self.source}")
        if self.target is None:
            source.unlink()
        else:
            shutil.move(source, root / self.target)
        return 1


def apply_changes(
    root: Path, changes: tuple[Change, ...] | None = None
) -> list[tuple[Change, int]]:
    """Apply `changes` (default: CHANGES) below `root`, in order.

    Returns:
        Each change with the number of places it changed, at least 1.

    Raises:
        PatchError: a change found nothing to change.
    """
    return [(change, change.apply(root)) for change in (CHANGES if changes is None else changes)]


# Read by pip when it builds the patched sources: no code of the archive runs for it. The local part
# of the version tells this install from one built from source; detectron2.__version__ stays 0.6.
_PYPROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "detectron2"
version = "0.6+python.only"
description = "Detectron2 v0.6 without compiled operators, patched for current dependencies"
requires-python = ">=3.10"
dependencies = [{dependencies}]

[tool.setuptools.packages.find]
include = ["detectron2*"]

[tool.setuptools.package-data]
"detectron2.model_zoo" = ["configs/**/*.yaml", "configs/**/*.py"]
"""

# What Detectron2's Python files import besides torch and torchvision. Its own upper bounds on
# iopath and black are dropped: the newer ones work.
DEPENDENCIES = (
    "Pillow>=7.1",
    "matplotlib",
    "numpy",
    "pycocotools>=2.0.6",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7",
    "omegaconf>=2.1",
    "hydra-core>=1.1",
    "packaging",
)

CHANGES: tuple[Change, ...] = (
    Move(
        "setup.py",
        "it imports torch and compiles C++ files that the archive does not have",
        "setup.py",
        None,
    ),
    AddFile(
        "pyproject.toml",
        "metadata instead of setup.py: no extension, no torch at build time, no upper bounds on "
        "dependencies that have no release for today's Python, zoo configs as package data",
        "pyproject.toml",
        _PYPROJECT.format(dependencies=", ".join(f'"{item}"' for item in DEPENDENCIES)),
    ),
    Move(
        "project point_rend",
        "setup.py mapped the three projects that belong to the package into it",
        "projects/PointRend/point_rend",
        "detectron2/projects/point_rend",
    ),
    Move(
        "project deeplab",
        "as point_rend",
        "projects/DeepLab/deeplab",
        "detectron2/projects/deeplab",
    ),
    Move(
        "project panoptic_deeplab",
        "as point_rend",
        "projects/Panoptic-DeepLab/panoptic_deeplab",
        "detectron2/projects/panoptic_deeplab",
    ),
    AddFile(
        "stand-in for _C",
        "v0.6 imports its compiled operators without a condition; the panoptic models use none",
        "detectron2/_C.py",
        (_HERE / "_C.py").read_text(encoding="utf-8"),
    ),
    Replace(
        "COCO AP without _C",
        "the fast COCOeval is compiled: take pycocotools' own, which it agrees with",
        "detectron2/evaluation/fast_eval_api.py",
        r"\Z",
        '\n\nif not getattr(_C, "COMPILED", True):\n    COCOeval_opt = COCOeval  # noqa: F811\n',
    ),
    Replace(
        "COCO AP names its implementation",
        "so that the log does not call pycocotools' own COCOeval unofficial",
        "detectron2/evaluation/coco_evaluation.py",
        r"self\._use_fast_impl = use_fast_impl$",
        "self._use_fast_impl = use_fast_impl and COCOeval_opt is not COCOeval",
    ),
    Replace(
        "numpy aliases",
        "np.bool, np.int, np.float, np.object, np.str left numpy in 1.24; they were the builtins",
        "detectron2/**/*.py",
        r"\bnp\.(bool|int|float|object|str)\b(?!_)",
        r"\1",
    ),
    Replace(
        "np.array(copy=False)",
        "numpy 2 raises where a copy cannot be avoided; np.asarray is what was meant",
        "detectron2/layers/mask_ops.py",
        r"np\.array\(mask, copy=False\)",
        "np.asarray(mask)",
    ),
    Replace(
        "Image.LINEAR",
        "left Pillow in 10; it was another name of BILINEAR",
        "detectron2/**/*.py",
        r"\bImage\.LINEAR\b",
        "Image.BILINEAR",
    ),
    Replace(
        "pkg_resources import",
        "left setuptools in 81",
        "detectron2/model_zoo/model_zoo.py",
        r"^import pkg_resources$",
        "import importlib.resources",
    ),
    Replace(
        "pkg_resources use",
        "importlib.resources finds the zoo's files",
        "detectron2/model_zoo/model_zoo.py",
        r"pkg_resources\.resource_filename\(\s*\"detectron2\.model_zoo\",\s*"
        r"os\.path\.join\(\"configs\", config_path\)\s*\)",
        'str(importlib.resources.files("detectron2.model_zoo").joinpath("configs", config_path))',
    ),
    Replace(
        "meshgrid indexing",
        "torch warns on every run that its default will change; 'ij' is what v0.6 had",
        "detectron2/modeling/anchor_generator.py",
        r"torch\.meshgrid\(shifts_y, shifts_x\)",
        'torch.meshgrid(shifts_y, shifts_x, indexing="ij")',
    ),
    Replace(
        "export without caffe2",
        "caffe2 left torch in 2.4, and detectron2.utils.analysis needs the other exporters",
        "detectron2/export/__init__.py",
        r"^from \.api import \*$",
        "try:\n    from .api import *\nexcept ImportError:  # caffe2 or onnx is missing\n    pass",
    ),
)
