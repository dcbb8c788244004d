"""Two annotators and a model: both ways, the mean, void and crowds, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from panoptic_ext.commands import evaluate
from panoptic_ext.errors import EvaluationError
from panoptic_ext.evaluation import evaluate_files
from panoptic_ext.evaluation.human_consistency import (
    PUBLISHED,
    Files,
    consistency_text,
    human_consistency,
    named_consistency,
)
from panoptic_ext.evaluation.report import metric_keys
from tests.evaluation.matches import CAR, SKY, row
from tests.evaluation.reference import segment, with_areas, write_dataset

Drawn = list[tuple[np.ndarray, list[dict]]]


def write(root: Path, kind: str, drawn: Drawn, image_ids: tuple[int, ...] = (0, 1, 2)) -> Files:
    images = [
        (i, f"{i}.png", ids, with_areas(ids, segments))
        for i, (ids, segments) in zip(image_ids, drawn, strict=False)
    ]
    return write_dataset(root, kind, images)


def car(width: int, void: int = 0, *, crowd: int = 0) -> tuple[np.ndarray, list[dict]]:
    """A car of `width` pixels, then void, then sky: 20 pixels in all."""
    ids = row((5, width), (0, void), (9, 20 - width - void))
    return ids, [segment(5, CAR, crowd=crowd), segment(9, SKY)]


@pytest.fixture
def files(tmp_path) -> dict[str, Files]:
    """Of three images by two annotators and a model. A leaves a gap of void behind the car."""
    return {
        "A": write(tmp_path, "anna", [car(8, 2), car(8, 2), car(6, 4)]),
        "B": write(tmp_path, "ben", [car(10), car(9), car(8)]),
        "model": write(tmp_path, "model", [car(9), car(12), car(6)]),
    }


def test_each_way_is_an_evaluation(files):
    found = human_consistency(*files.values(), num_threads=0)
    assert list(found.results) == [("A", "B"), ("B", "A"), ("A", "model"), ("B", "model")]
    for (truth, prediction), measures in found.results.items():
        expected = evaluate_files(*files[truth], *files[prediction], num_threads=0)
        assert metric_keys(measures.summary) == metric_keys(expected.summary)


def test_void_of_the_truth_is_left_out_and_that_of_a_prediction_is_missed(files):
    found = human_consistency(files["A"], files["B"], num_threads=0)
    first, second = (metric_keys(m.summary) for m in found.results.values())
    assert first["PQ"] == 100  # B's car lies on A's car and void
    assert second["PQ_th"] == pytest.approx(100 * (8 / 10 + 8 / 9 + 6 / 8) / 3)
    mean = found.mean(of_model=False)
    assert mean["PQ"] == pytest.approx((100 + second["PQ"]) / 2)


def test_a_crowd_is_one_on_the_truth_alone(tmp_path):
    first = write(tmp_path, "a", [car(8, crowd=1)])
    second = write(tmp_path, "b", [car(8)])
    found = human_consistency(first, second, num_threads=0).results
    # A's crowd excuses B's car; as a prediction it is a car, which B's car matches.
    assert found["A", "B"].total[CAR].tp == 0 and found["A", "B"].total[CAR].fp == 0
    assert found["B", "A"].total[CAR].tp == 1


def test_without_void_and_crowd_both_ways_agree(tmp_path):
    first = write(tmp_path, "a", [car(8), car(12), car(3)])
    second = write(tmp_path, "b", [car(9), car(5), car(4)])
    found = human_consistency(first, second, num_threads=0).results
    one, other = (metric_keys(m.summary) for m in found.values())
    assert one["PQ"] == pytest.approx(other["PQ"])


def test_text_and_json(files):
    found = human_consistency(*files.values(), num_threads=0)
    text = consistency_text(found)
    for name, (pq, stuff, things) in PUBLISHED.items():
        assert f"{name} (published)" in text
        assert f"{pq:.2f} |   {stuff:.2f} |   {things:.2f} |" in text
    assert "On the truth of A: the model is worse than annotator B by" in text
    content = json.loads(json.dumps(named_consistency(found), allow_nan=False))
    pairs = [(r["truth"], r["prediction"]) for r in content["results"]]
    assert pairs == list(found.results)
    assert content["published"]["COCO"] == {"PQ": 53.5, "PQ_st": 47.1, "PQ_th": 57.8}
    assert content["mean"]["model"]["PQ"] < content["mean"]["people"]["PQ"]
    alone = human_consistency(files["A"], files["B"], num_threads=0)
    assert "model" not in consistency_text(alone)
    assert list(named_consistency(alone)["mean"]) == ["people"]


def test_images_that_all_have(tmp_path):
    first = write(tmp_path, "a", [car(8), car(9)])
    second = write(tmp_path, "b", [car(8), car(9)], (1, 2))
    model = write(tmp_path, "m", [car(8), car(9), car(7)])
    with pytest.raises(EvaluationError, match="have no prediction"):
        human_consistency(first, second, model, num_threads=0)
    found = human_consistency(first, second, model, num_threads=0, only_common=True)
    assert found.num_images == 1
    assert {tuple(m.images) for m in found.results.values()} == {(1,)}
    other = write(tmp_path, "other", [car(8), car(9)], (0, 2))  # one with each
    with pytest.raises(EvaluationError, match="no image id in common"):
        human_consistency(first, second, other, num_threads=0, only_common=True)


def test_the_command(files, tmp_path, capsys):
    (a, a_root), (b, b_root), (model, model_root) = files.values()
    output = tmp_path / "agreement.json"
    arguments = ["--annotators", a, b, "--gt-root", a_root, b_root, "--output", str(output)]
    assert evaluate.main([*arguments, "--pred", model, "--pred-root", model_root]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"A: {a}\nB: {b}\nmodel: {model}\nHuman consistency, 3 images:\n")
    assert json.loads(output.read_text())["model"] == model
    assert evaluate.main(arguments) == 0
    assert evaluate.main([*arguments[:-2], "--output", b]) == 2
    assert "is an input" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gt", "x"], "one of the arguments --pred --compare is required"),
        (["--pred", "x"], "one of the arguments --gt --annotators is required"),
        (["--annotators", "a", "b", "--compare", "c", "d"], "not allowed with argument --annot"),
        (["--annotators", "a", "b", "--gt", "c"], "not allowed with argument"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], message: str, capsys):
    with pytest.raises(SystemExit) as error:
        evaluate.main(arguments)
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_roots_of_annotators_are_counted(capsys):
    assert evaluate.main(["--annotators", "a", "b", "--gt-root", "c"]) == 2
    assert "--gt-root names 1 folders for 2 JSONs" in capsys.readouterr().err
    assert evaluate.main(["--annotators", "a", "b", "--pred-root", "c"]) == 2
    assert "--pred-root names 1 folders for 0 JSONs" in capsys.readouterr().err
