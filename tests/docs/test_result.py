"""The page about results: its Python runs as it stands, and says what comes out."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest

import panoptic_ext
from panoptic_ext import PanopticResult
from tests.docs.pages import DOCS
from tests.tiny.results import METADATA, STREET_SEGMENTS, street, street_ids, street_image

TEXT = (DOCS / "result.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def test_the_python_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "load(" in BLOCKS[0]  # downloads a model: this result stands for its own
    names: dict[str, Any] = {"panoptic_ext": panoptic_ext}
    names["result"] = PanopticResult(street_ids(), STREET_SEGMENTS, METADATA, street_image())
    for block in BLOCKS[1:]:
        exec(block, names)
    assert names["same"] == names["result"] and names["masks"].shape == (5, 6, 10)
    assert {path.name for path in tmp_path.iterdir()} == {"street.png", "results"}
    assert [s.id for s in names["good"]] == []


def test_what_map_categories_gives_is_what_the_page_says():
    block = next(block for block in BLOCKS if "id2label =" in block)
    names: dict[str, Any] = {}
    exec(block, names)
    expected = ast.literal_eval(re.search(r"^# (\[.*\])$", block, re.MULTILINE)[1])
    labels, segments = names["id2label"], [dict(s) for s in names["segments"]]
    mapped = panoptic_ext.map_categories(segments, labels, "coco_2017_val_panoptic")
    assert mapped == expected


@pytest.mark.parametrize("name", re.findall(r"^\| `(\w+)\(", TEXT, re.MULTILINE))
def test_methods_of_the_page_exist(name):
    assert callable(getattr(street(), name))
