"""Write the notebooks of the tutorials: docs/tutorials/*.ipynb, from the pages beside them.

    python docs/notebooks.py

A page is the only source. Each of its python blocks becomes a code cell, the text between them a
Markdown cell. What stands between the lines `<!-- page only -->` and `<!-- end -->` is left out:
the output of a cell, for instance, which a notebook shows itself. The first code cell holds the
values that a reader changes, one `NAME = value` a line; it has the tag "parameters", which
papermill knows.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

TUTORIALS = Path(__file__).resolve().parent / "tutorials"
PARAMETERS = "parameters"

_PAGE_ONLY = re.compile(r"^<!-- page only -->\n.*?^<!-- end -->\n", re.DOTALL | re.MULTILINE)
_PYTHON = re.compile(r"^```python\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
SHOWN = re.compile(rf"{_PYTHON.pattern}(?:\n({_PAGE_ONLY.pattern}))?", re.DOTALL | re.MULTILINE)
"""A python block and the page-only part that follows it, if one does."""


def pages() -> list[Path]:
    """The pages that have a notebook."""
    return sorted(TUTORIALS.glob("*.md"))


def notebook_path(page: Path) -> Path:
    return page.with_suffix(".ipynb")


def notebook(page: Path) -> NotebookNode:
    """The notebook of a page, without outputs.

    Raises:
        ValueError: a marker has no other end, or the first code cell does not only assign.
    """
    text = _PAGE_ONLY.sub("", page.read_text(encoding="utf-8"))
    if "<!--" in text:
        raise ValueError(f"{page.name}: a '<!-- page only -->' or an '<!-- end -->' stands alone")
    cells = list(_cells(text))
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"  # nbformat draws a random one: the file would change each time
    first = next((cell for cell in cells if cell.cell_type == "code"), None)
    if first is None:
        raise ValueError(f"{page.name} has no python block")
    first.metadata.tags = [PARAMETERS]
    parameters(first)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return new_notebook(
        cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}}
    )


def _cells(text: str) -> Iterator[NotebookNode]:
    for number, part in enumerate(_PYTHON.split(text)):
        if not part.strip():
            continue
        is_code = number % 2 == 1  # split puts what the pattern's group found between the texts
        yield (new_code_cell if is_code else new_markdown_cell)(part.strip("\n"))


def code_and_shown(page: Path) -> list[tuple[str, str]]:
    """Each python block of a page, with the page-only part that follows it, "" where none does."""
    return [(code, shown) for code, shown in SHOWN.findall(page.read_text(encoding="utf-8"))]


def parameters(cell: NotebookNode) -> list[str]:
    """The names that the first code cell assigns.

    Raises:
        ValueError: a line is no assignment to a name.
    """
    names = []
    for line in ast.parse(cell.source).body:
        target = line.targets[0] if isinstance(line, ast.Assign) else None
        if not isinstance(target, ast.Name):
            raise ValueError(f"expected NAME = value in the first cell, found {ast.unparse(line)}")
        names.append(target.id)
    return names


def with_parameters(source: NotebookNode, values: Mapping[str, object]) -> NotebookNode:
    """A copy of a notebook with other values in its first code cell; nothing else differs.

    Raises:
        ValueError: the cell assigns other names.
    """
    changed = nbformat.from_dict(source)
    cell = next(cell for cell in changed.cells if PARAMETERS in cell.metadata.get("tags", ()))
    if parameters(cell) != list(values):
        raise ValueError(f"the first cell assigns {parameters(cell)}, values are {list(values)}")
    cell.source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    return changed


def text_of(page: Path) -> str:
    """The file of a page's notebook."""
    content = notebook(page)
    nbformat.validate(content)
    return nbformat.writes(content) + "\n"


def main() -> None:
    for page in pages():
        notebook_path(page).write_text(text_of(page), encoding="utf-8")
        sys.stdout.write(f"{notebook_path(page).relative_to(TUTORIALS.parent.parent)}\n")


if __name__ == "__main__":
    main()
