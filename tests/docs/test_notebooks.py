"""docs/notebooks.py: a page and its notebook cannot differ."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from docs.notebooks import (
    code_and_shown,
    notebook,
    notebook_path,
    pages,
    text_of,
    with_parameters,
)

PAGE = """# A page

Text with `code` and a [link](other.md).

<!-- page only -->
Only here.
<!-- end -->

```python
MODEL = "a"
PICTURE = "b.jpg"
```

```sh
not a cell
```

```python
print(MODEL)
```

<!-- page only -->
```text
a
```
<!-- end -->

The end.
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_the_notebook_of_a_page_is_up_to_date(page: Path) -> None:
    text = notebook_path(page).read_text(encoding="utf-8")
    assert text == text_of(page), f"run python docs/notebooks.py ({page.name} has changed)"
    for cell in nbformat.reads(text, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_every_notebook_has_a_page() -> None:
    folder = pages()[0].parent
    assert sorted(folder.glob("*.ipynb")) == [notebook_path(page) for page in pages()]


def test_cells_are_the_python_blocks_and_the_text_between_them(page: Path) -> None:
    cells = notebook(page).cells
    assert [(cell.cell_type, cell.source) for cell in cells] == [
        ("markdown", "# A page\n\nText with `code` and a [link](other.md)."),
        ("code", 'MODEL = "a"\nPICTURE = "b.jpg"'),
        ("markdown", "```sh\nnot a cell\n```"),
        ("code", "print(MODEL)"),
        ("markdown", "The end."),
    ]
    assert [cell.id for cell in cells] == [f"cell-{i}" for i in range(5)]
    assert cells[1].metadata.tags == ["parameters"]


def test_what_a_page_shows_below_its_code(page: Path) -> None:
    (first, nothing), (second, shown) = code_and_shown(page)
    assert first == 'MODEL = "a"\nPICTURE = "b.jpg"\n' and nothing == ""
    assert second == "print(MODEL)\n" and "```text\na\n```" in shown


def test_parameters_change_one_cell_only(page: Path) -> None:
    before = notebook(page)
    after = with_parameters(before, {"MODEL": "run", "PICTURE": "it's.png"})
    assert after.cells[1].source == "MODEL = 'run'\nPICTURE = \"it's.png\""
    after.cells[1].source = before.cells[1].source
    assert after == before


def test_other_parameters_are_refused(page: Path) -> None:
    with pytest.raises(ValueError, match=r"assigns \['MODEL', 'PICTURE'\], values are \['MODEL'\]"):
        with_parameters(notebook(page), {"MODEL": "run"})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<!-- end -->", "", "page.md: .*stands alone"),
        ('MODEL = "a"', "import os", "expected NAME = value in the first cell, found import os"),
        ("```python", "```py", "page.md has no python block"),
    ],
)
def test_a_page_that_is_wrong(page: Path, old: str, new: str, message: str) -> None:
    page.write_text(PAGE.replace(old, new))
    with pytest.raises(ValueError, match=message):
        notebook(page)
