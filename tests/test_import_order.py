"""Rooms of the package import only rooms further left, root modules no room at all."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests import ROOT

ROOMS = (
    "config", "data", "modeling", "postprocessing", "fusion", "evaluation", "combine",
    "visualization", "engine", "model_zoo", "prediction", "commands",
)  # fmt: skip
# Models get tensors and plain values, and read data sets through Detectron2's catalogues alone.
NEVER = {("modeling", "data"), ("postprocessing", "data"), ("fusion", "data")}
# (importing folder or file, imported folder or file) -> why it may.
EXCEPTIONS = {
    ("modeling/meta_arch", "postprocessing"): "a meta-architecture wires: it delegates inference",
    ("modeling/meta_arch", "fusion"): "a meta-architecture wires: it owns a fusion",
    ("__init__.py", ""): "the package shows public names of its rooms and imports to register",
    ("engine/predictor.py", "prediction"): "an alias: README's address of the predictor",
}


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules of panoptic_ext that a file imports anywhere, but for type checking alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("panoptic_ext"):
            if node.module == "panoptic_ext":
                yield from (f"panoptic_ext.{alias.name}" for alias in node.names)
            else:
                yield str(node.module)
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("panoptic_ext."))
        yield from imported(node)


def wrong_imports(package: Path) -> list[str]:
    """ "file imports module" for every import to the right that is no exception."""
    wrong = []
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package).as_posix()
        here = ROOMS.index(file.split("/")[0]) if "/" in file else -1
        for module in imported(ast.parse(path.read_text())):
            target = module.removeprefix("panoptic_ext.").replace(".", "/")
            room = target.split("/")[0]
            if room not in ROOMS:
                continue
            if ROOMS.index(room) <= here and (file.split("/")[0], room) not in NEVER:
                continue
            if not any(file.startswith(a) and target.startswith(b) for a, b in EXCEPTIONS):
                wrong.append(f"{file} imports {module}")
    return wrong


def test_every_folder_is_a_room() -> None:
    folders = {p.parent.name for p in (ROOT / "panoptic_ext").glob("*/__init__.py")}
    assert folders == set(ROOMS)


def test_rooms_import_to_the_left_only() -> None:
    assert wrong_imports(ROOT / "panoptic_ext") == []


def test_an_import_to_the_right_is_found(tmp_path: Path) -> None:
    files = {
        "errors.py": "import panoptic_ext.data.coco",
        "data/records.py": "def f():\n    from panoptic_ext.modeling import x\n",
        "modeling/fpn.py": "from panoptic_ext.fusion import x\nfrom panoptic_ext.data import y\n",
        "modeling/meta_arch/mine.py": "from panoptic_ext.fusion import x\n",
        "engine/run.py": "from panoptic_ext import commands, data\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert wrong_imports(tmp_path) == [
        "data/records.py imports panoptic_ext.modeling",
        "engine/run.py imports panoptic_ext.commands",
        "errors.py imports panoptic_ext.data.coco",
        "modeling/fpn.py imports panoptic_ext.fusion",
        "modeling/fpn.py imports panoptic_ext.data",
    ]
