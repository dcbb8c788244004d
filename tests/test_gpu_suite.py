"""benchmarks/gpu_suite.py: a smoke run of all of it, and what it does when something fails."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from tests import ROOT
from tests.tiny.train_in_process import train


@pytest.fixture
def suite_module(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_suite

    return gpu_suite


@pytest.fixture
def make_suite(suite_module, tmp_path):
    return lambda minutes=1.0, **keys: suite_module.Suite(
        "cpu", tmp_path, minutes, smoke=True, **keys
    )


def rows_of(folder):
    return json.loads((folder / "results.json").read_text())["rows"]


@pytest.mark.slow
def test_a_smoke_run_measures_every_part_and_a_second_one_nothing(
    suite_module, tmp_path, monkeypatch, clean_catalogs
):
    for package in ("transformers", "timm"):
        pytest.importorskip(package)
    import gpu_suite_runs

    monkeypatch.setattr(gpu_suite_runs, "_train_here", train)
    arguments = ["--smoke", "--device", "cpu", "--output", str(tmp_path / "out")]
    arguments += ["--copy", str(tmp_path / "copy")]
    assert suite_module.main(arguments) == 0
    rows = rows_of(tmp_path / "out")
    assert {key.partition("/")[0] for key in rows} == set(suite_module.PARTS)
    assert [f"{key}: {row['error']}" for key, row in rows.items() if "error" in row] == []
    assert rows["tests/gpu"]["passed"] == 1
    assert rows["facade/training on shapes, mask2former_R18_shapes"]["iteration, s, PQ"]
    kernel = next(row for key, row in rows.items() if key.startswith("kernels/fp32"))
    assert kernel["relative error"] < 1e-5 and kernel["both, equal twice"]
    sides = [row["segments"] for key, row in rows.items() if key.startswith("inference/eomt")]
    assert len(sides) == 2 and abs(sides[0] - sides[1]) <= 2
    table = (tmp_path / "copy" / "table.md").read_text()
    assert all(f"## {part}\n" in table for part in suite_module.PARTS)
    before = rows_of(tmp_path / "out")
    assert suite_module.main(arguments) == 0
    assert rows_of(tmp_path / "out") == before


def test_a_failure_and_lack_of_memory_are_results_and_the_rest_goes_on(make_suite, tmp_path):
    def fails():
        raise ValueError("no such card")

    def is_too_large():
        raise torch.OutOfMemoryError

    suite = make_suite()
    suite.measure("a/1", fails)
    suite.measure("a/2", is_too_large)
    suite.measure("a/3", lambda: {"ms": 1.5, "curve": [[1, 2.0]]})
    rows = rows_of(tmp_path)
    assert rows["a/1"]["error"] == "ValueError: no such card"
    assert rows["a/2"]["error"] == "out of memory"
    assert rows["a/3"]["ms"] == 1.5
    table = (tmp_path / "table.md").read_text()
    assert "| 3 |" in table and "out of memory" in table and "3, curve: 1, 2" in table
    make_suite().measure("a/1", lambda: {"ms": 2.0})
    assert "error" in rows_of(tmp_path)["a/1"]
    make_suite(retry=True).measure("a/1", lambda: {"ms": 2.0})
    assert rows_of(tmp_path)["a/1"]["ms"] == 2.0


def test_nothing_begins_when_the_time_is_over_and_unfinished_work_goes_on(
    make_suite, suite_module, tmp_path
):
    make_suite().measure("a/1", lambda: {"parts": 1, "unfinished": True})
    with pytest.raises(suite_module.OutOfTime):
        make_suite(minutes=0.0).measure("a/1", dict)
    assert rows_of(tmp_path)["a/1"]["unfinished"]
    make_suite().measure("a/1", lambda: {"parts": 2})
    row = rows_of(tmp_path)["a/1"]
    assert row["parts"] == 2 and "unfinished" not in row


def test_a_measurement_that_takes_the_machine_with_it_is_tried_twice(make_suite, tmp_path):
    def is_lost():
        raise KeyboardInterrupt  # nothing in the suite catches it

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            make_suite().measure("a/1", is_lost)
    make_suite().measure("a/1", is_lost)
    assert "lost 2 times" in rows_of(tmp_path)["a/1"]["error"]


def test_a_new_process_goes_on_where_one_was_lost(suite_module, tmp_path, monkeypatch, capsys):
    options = SimpleNamespace(minutes=1.0, output=tmp_path)
    codes = [-11, suite_module._LOST, 0]

    def run(command, check):
        assert command[:2] == [sys.executable, suite_module.__file__] and "--worker" in command
        if codes[0] == -11:
            suite_module.Results(tmp_path / "results.json").begin("kernels/bad")
        return SimpleNamespace(returncode=codes.pop(0))

    monkeypatch.setattr(suite_module.subprocess, "run", run)
    assert suite_module.run_workers(options, []) == 0
    assert not codes
    assert "code -11" in rows_of(tmp_path)["kernels/bad"]["error"]
    assert "a new one goes on" in capsys.readouterr().out


def test_tests_that_the_time_cut_off_are_not_run_again(make_suite, monkeypatch, suite_module):
    import gpu_suite_runs

    commands = []

    def run(command, stream, seconds, **settings):
        commands.append(command)
        lines = ["tests/a.py::test_x PASSED [ 50%]", "tests/a.py::test_y[1] FAILED [100%]"]
        stream.write(lines[len(commands) - 1] + "\n")
        stream.flush()
        return None if len(commands) == 1 else 1

    monkeypatch.setattr(gpu_suite_runs, "_run", run)
    for _ in range(2):
        gpu_suite_runs.gpu_tests(make_suite())
    assert "--deselect=tests/a.py::test_x" in commands[1]
    row = make_suite().results.row("tests/gpu")
    assert (row["passed"], row["failed"], row["bad"]) == (1, 1, ["tests/a.py::test_y[1]"])
    assert "unfinished" not in row


def test_without_a_cuda_device_there_is_one_message(suite_module, capsys):
    with pytest.raises(SystemExit) as ended:
        suite_module.main(["--device", "cpu"])
    assert ended.value.code == 2
    assert "--smoke runs the suite" in capsys.readouterr().err
