"""Benchmarks use names that the package and the tests really have."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

from tests import ROOT

BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))


def imports_of(path: Path) -> list[tuple[str, str]]:
    """(module, name) of every `from MODULE import NAME` of the package or the tests."""
    return [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if node.module.partition(".")[0] in ("panoptic_ext", "tests")
    ]


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_the_names_that_a_benchmark_imports_exist(path: Path) -> None:
    """They are read, not run: some benchmarks need packages that are not installed everywhere."""
    for module, name in imports_of(path):
        has_name = hasattr(importlib.import_module(module), name)
        assert has_name or importlib.util.find_spec(f"{module}.{name}"), f"{module} has no {name}"
