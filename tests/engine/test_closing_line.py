"""The last line of a training."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from panoptic_ext.engine.closing_line import closing_line

ONE = {"panoptic_seg": {"PQ": 33.33, "SQ": 1.0}, "segm": {"AP": math.nan}, "sem_seg": {"mIoU": 50}}


@pytest.mark.parametrize(
    ("results", "words"),
    [
        (ONE, "ended: PQ 33.3, mIoU 50.0 at the end. Weights: "),
        ({"a_val": ONE, "b_val": {"segm": {"AP": 2.0}}},
         "ended: a_val PQ 33.3, a_val mIoU 50.0, b_val AP 2.0 at the end. Weights: "),
        ({"other": {"metric": 3.0}}, "ended: Weights: "),
        ({}, "ended: Weights: "),
        (None, "ended: Weights: "),
    ],
)  # fmt: skip
def test_numbers(results: dict | None, words: str, tmp_path: Path) -> None:
    assert words in closing_line(str(tmp_path), results)


def test_weights_are_those_that_predict_takes(tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    folder.mkdir()
    assert f"Weights: {folder}/model_final.pth. " in closing_line(str(folder), None)
    (folder / "model_best.pth").touch()
    line = closing_line(str(folder), None)
    assert f"Weights: {folder}/model_best.pth (those of the best evaluation). " in line
    assert line.endswith(f"predict --model '{folder}' IMAGES")
