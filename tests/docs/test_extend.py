"""Your own parts: the files of docs/examples work outside the package, by the page's commands."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, command, run_all, shell_lines

PAGE = DOCS / "extend.md"
EXAMPLES = sorted((DOCS / "examples").glob("*.py"))
PARTS = ("fusion", "decoder", "backbone", "backbone_fpn", "meta_architecture", "evaluator")

# A class of stuff everywhere; the small car has the lower score and lies within the large one.
CHECK_FUSION = """
import torch
from fusion import SmallOnTop
from panoptic_ext.fusion import Detections, FusionRule

boxes = torch.tensor([[2.0, 2.0, 4.0, 4.0], [0.0, 0.0, 8.0, 6.0], [0.0, 0.0, 8.0, 8.0]])
scores = torch.tensor([0.6, 0.9, 0.4])
detections = Detections(boxes, scores, torch.ones(3, dtype=torch.int64), torch.full((3, 4, 4), 9.0))
fusion = SmallOnTop(FusionRule([1], 2, stuff_area_threshold=1))
panoptic_seg, segments = fusion(torch.zeros(2, 8, 8), detections)
assert [s["area"] for s in segments] == [16, 44, 4], segments
assert [(s["id"], s["category_id"]) for s in segments] == [(1, 0), (2, 1), (3, 1)], segments
assert [s.get("instance_id") for s in segments] == [None, 1, 0], segments
assert panoptic_seg[2, 2] == 3 and panoptic_seg[0, 0] == 2 and panoptic_seg[7, 7] == 1
alone, table = fusion(torch.zeros(2, 8, 8), detections[torch.tensor([], dtype=torch.int64)])
assert (alone == 1).all() and [s["area"] for s in table] == [64]
"""


@pytest.mark.slow
def test_every_command_of_the_page_runs_outside_the_package(tmp_path: Path) -> None:
    for path in EXAMPLES:
        shutil.copy(path, tmp_path)
    (tmp_path / "check_fusion.py").write_text(CHECK_FUSION)
    commands = [["check_fusion.py"], *(command(line) for line in shell_lines(PAGE))]
    outputs = run_all(commands, tmp_path, tmp_path / "cache")
    assert len(outputs) == len(commands)
    for part in PARTS:
        run = tmp_path / "output" / part
        assert (run / "model_final.pth").is_file(), part
        results = json.loads((run / "inference/shapes_panoptic_val/results.json").read_text())
        assert "panoptic_seg" in results, part
    assert 0 <= results["coverage"]["percent"] <= 100


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_short_and_on_a_page(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), path
    assert len(text.splitlines()) <= 50
    pages = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))
    assert f'--8<-- "docs/examples/{path.name}"' in pages


def test_every_base_class_and_registry_of_the_table_exists() -> None:
    names = re.findall(r"api/(panoptic_ext[\w.]*)\.md", PAGE.read_text(encoding="utf-8"))
    assert names
    for name in names:
        assert (DOCS.parent / name.replace(".", "/") / "__init__.py").is_file(), name
