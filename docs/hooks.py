"""Pages of the site that are written from the sources whenever it is built.

`configs.md` comes from panoptic_ext/config, `api/` from the modules that have `__all__`. Nothing of
the package is imported: the site needs neither torch nor Detectron2.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).resolve().parent))

import config_keys

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "panoptic_ext"

API_INTRODUCTION = """# API reference

A page for each room of the package, with the names of each module's `__all__`. Names that the
README and [Your own parts](../extend.md) use stay from version to version. The rest may change
while the version begins with 0.

"""


def public_names(path: Path) -> list[str]:
    """`__all__` of a module, without the names that it only hands on; [] where it has none."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: list[str] = []
    imported: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            imported |= {alias.asname or alias.name for alias in node.names}
    return [name for name in names if name not in imported]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def first_line(path: Path) -> str:
    """The first sentence of a room's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ")


def rooms() -> list[Path]:
    """The folders that hold modules, in alphabetical order; the package's own comes first."""
    return sorted(path.parent for path in PACKAGE.rglob("__init__.py"))


def room_page(room: Path) -> str:
    """The page of one room: each module's docstring and public names."""
    lines = [f"# {module_name(room / '__init__.py')}", "", first_line(room / "__init__.py"), ""]
    for path in sorted(room.glob("*.py")):
        names = public_names(path)
        if not names or path.name == "__init__.py":
            continue
        lines += [f"## {path.stem}", "", f"::: {module_name(path)}", "    options:"]
        lines += ["      show_root_heading: false", "      show_root_toc_entry: false"]
        lines += [f"      members: [{', '.join(names)}]", ""]
    return "\n".join(lines)


def has_modules(room: Path) -> bool:
    return any(public_names(p) for p in room.glob("*.py") if p.name != "__init__.py")


def api_pages() -> dict[str, str]:
    """Address of each page of the reference -> its Markdown."""
    pages, index = {}, [API_INTRODUCTION, "| room | what it holds |", "|---|---|"]
    for room in filter(has_modules, rooms()):
        name = module_name(room / "__init__.py")
        pages[f"api/{name}.md"] = room_page(room)
        index.append(f"| [`{name}`]({name}.md) | {first_line(room / '__init__.py')} |")
    return {"api/index.md": "\n".join(index) + "\n", **pages}


def on_config(config: Any) -> Any:
    """Put the pages of the reference into the navigation."""
    index, *pages = api_pages()
    names = [Path(page).stem.removeprefix("panoptic_ext.") for page in pages]
    for entry in config.nav:
        if "API reference" in entry:
            rooms_ = [{name: page} for name, page in zip(names, pages, strict=True)]
            entry["API reference"] = [index, *rooms_]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the written pages to those of the folder."""
    pages = {"configs.md": config_keys.page(), **api_pages()}
    for address, text in pages.items():
        files.append(File.generated(config, address, content=text))
    return files
