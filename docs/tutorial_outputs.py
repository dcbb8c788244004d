"""Write what the pages of the tutorials show below their code: pictures and printed lines.

    python docs/tutorial_outputs.py

It runs each notebook with the drawn street and the small models of tests/tiny/street.py, because
published weights are not at hand where the project is built. What a cell has printed replaces the
text block that follows it on the page, and its pictures become the SVG files that the page names.
"""

from __future__ import annotations

import base64
import io
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
from nbformat import NotebookNode
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# E402: these modules are found only through the line above.
from docs.make_figures import write_svg  # noqa: E402
from docs.notebooks import SHOWN, pages  # noqa: E402
from tests.docs.notebook_runs import pictures, printed, run_page  # noqa: E402
from tests.tiny.street import stand_ins  # noqa: E402

ITERATIONS = 300  # more than the tests need, for good outlines
WIDTH = 900  # pixels, of a picture on a page
TEXT = re.compile(r"(?<=^```text\n).*?(?=^```)", re.DOTALL | re.MULTILINE)


def write_outputs(page: Path, executed: NotebookNode) -> None:
    """Bring a page and its pictures up to date with an executed notebook."""
    cells = iter([cell for cell in executed.cells if cell.cell_type == "code"])

    def with_outputs(block: re.Match[str]) -> str:
        cell = next(cells)
        names = re.findall(r"\]\(([\w-]+\.svg)\)", block[0])
        for name, picture in zip(names, pictures(cell), strict=True):
            image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
            write_svg(np.asarray(image), page.parent / name, (), width=min(WIDTH, image.width))
        return TEXT.sub(lambda _: printed(cell), block[0])

    text = page.read_text(encoding="utf-8")
    page.write_text(SHOWN.sub(with_outputs, text), encoding="utf-8")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        values = stand_ins(Path(folder), iterations=ITERATIONS)
        for page in pages():
            work = Path(folder) / f"work_{page.stem}"
            work.mkdir()
            write_outputs(page, run_page(page, values[page.stem], work))
            sys.stdout.write(f"{page.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
