"""Runs a tutorial's notebook as a reader's Jupyter would, in a folder of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from docs.notebooks import notebook, with_parameters
from tests import ROOT

SECONDS = 60  # for a cell


def run_page(
    page: Path, values: Mapping[str, object], folder: Path, *, checks: str = ""
) -> NotebookNode:
    """Execute a page's notebook with other values in its first code cell; nothing else differs.

    Args:
        page: of docs/tutorials.
        values: name -> value of the first code cell.
        folder: that the cells run in.
        checks: Python that runs after the last cell and sees what the cells have assigned.

    Returns:
        The notebook with its outputs, without the checks.

    Raises:
        CellExecutionError: a cell or the checks failed; has the traceback.
    """
    content = with_parameters(notebook(page), values)
    client = NotebookClient(content, timeout=SECONDS, resources={"metadata": {"path": folder}})
    with client.setup_kernel(env=_environment(folder)):
        for index, cell in enumerate(list(content.cells)):
            client.execute_cell(cell, index)
        content.cells.append(new_code_cell(checks))
        client.execute_cell(content.cells[-1], len(content.cells) - 1)
    del content.cells[-1]
    return content


def _environment(folder: Path) -> dict[str, str]:
    """The variables of the kernel's process."""
    # Left out: the kernel sets the backend that puts figures into the notebook itself.
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    return {
        **environment,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "IPYTHONDIR": str(folder / ".ipython"),  # no start-up files of the user's
        "HF_HUB_OFFLINE": "1",
    }


def printed(cell: NotebookNode) -> str:
    """What a code cell has printed, without the log."""
    texts = [out.text for out in cell.outputs if out.get("name") == "stdout"]
    return "".join(texts)


def pictures(cell: NotebookNode) -> list[str]:
    """The PNGs that a code cell shows, each as base64."""
    shown = [out.data for out in cell.outputs if "data" in out]
    return [data["image/png"] for data in shown if "image/png" in data]
