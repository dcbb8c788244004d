"""Curves from metrics.json: minutes, resumed runs, seeds, errors, and the tool that draws them."""

from __future__ import annotations

import json

import pytest

from panoptic_ext.commands import compare_runs
from panoptic_ext.errors import PanopticExtError
from panoptic_ext.visualization.learning_curves import curve_table, read_curve

PQ = "panoptic_seg/PQ"


def write(folder, rows):
    folder.mkdir()
    (folder / "metrics.json").write_text("\n".join(json.dumps(row) for row in rows))
    return str(folder)


def row(iteration, time=None, pq=None):
    given = {"iteration": iteration, "time": time, PQ: pq}
    return {key: value for key, value in given.items() if value is not None}


@pytest.fixture
def run(tmp_path):
    return write(tmp_path / "run", [row(19, 3.0), row(39, 6.0, 10.5), row(59, 3.0), row(59, pq=20)])


def test_iterations_minutes_and_values(run):
    curve = read_curve(run, "a")
    assert curve.iterations == [40, 60] and curve.values == [10.5, 20]
    assert curve.minutes == pytest.approx([20 * 9 / 60, 20 * 12 / 60])


def test_the_evaluation_after_the_end_counts_no_step(tmp_path):
    rows = [row(9, 6.0, 5.0), row(19, 6.0), row(20, pq=7.0)]
    curve = read_curve(write(tmp_path / "ended", rows), "a")
    assert curve.iterations == [10, 20] and curve.minutes == pytest.approx([1.0, 2.0])


def test_a_resumed_run_counts_each_iteration_once(tmp_path, run):
    rows = [row(19, 3.0), row(39, 6.0, 10.5), row(59, 9.0, 3), row(39, 6.0, 10.5), row(59, 3.0, 20)]
    assert read_curve(write(tmp_path / "resumed", rows), "a") == read_curve(run, "a")


def test_table_of_seeds(tmp_path):
    runs = [write(tmp_path / str(i), [row(9, 6.0, pq)]) for i, pq in enumerate((10.0, 14.0))]
    curves = [read_curve(run, "model") for run in runs]
    assert curve_table(curves).splitlines()[-1] == (
        "| model | 2 | 10 | 1 | 12.0 (10.0 to 14.0) | 12.0 |"
    )


@pytest.mark.parametrize("text", ["", "{", "[]\n", '{"loss": 1}\n', '{"iteration": 3}\n'])
def test_files_without_a_curve(tmp_path, text):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(PanopticExtError, match=r"metrics\.json"):
        read_curve(str(tmp_path), "a")


def test_command(tmp_path, run, capsys):
    picture = tmp_path / "deep" / "curves.svg"
    assert compare_runs.main([f"ours={run}", "--output", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "| ours | 1 | 60 | 4 | 20.0 | 20.0 |" in printed and str(picture) in printed
    assert picture.read_text().startswith("<?xml") and "</svg>" in picture.read_text()


@pytest.mark.parametrize("arguments", [["a=nowhere"], ["ours={run}", "--metric", "no/such"]])
def test_command_reports_errors(tmp_path, run, arguments, capsys):
    given = [argument.format(run=run) for argument in arguments]
    assert compare_runs.main([*given, "--output", str(tmp_path / "a.svg")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_an_unknown_metric_is_answered_with_the_nearest(tmp_path):
    keys = [f"sem_seg/IoU-class {number}" for number in range(50)]
    run = write(tmp_path / "run", [{"iteration": 1, **dict.fromkeys([*keys, PQ], 1.0)}])
    with pytest.raises(PanopticExtError, match=r"found panoptic_seg/PQ, .* and 41 more$") as error:
        read_curve(run, "a", "pq")
    assert len(str(error.value)) < 700
