"""Predictions of two models do not share a folder; the message lists what differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from panoptic_ext.errors import ConfigError
from panoptic_ext.prediction.settings import (
    check_prediction_settings,
    prediction_settings,
)
from tests.tiny.training import tiny_cfg


def test_settings_that_differ_are_listed_with_both_values(tmp_path: Path) -> None:
    output = tmp_path / "out"
    first, second = tmp_path / "first.pth", tmp_path / "second.pth"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    cfg = tiny_cfg(tmp_path)

    def check(weights: Path = first, overwrite: bool = False, **drawing: object) -> None:
        settings = prediction_settings(cfg, str(weights), drawing)
        check_prediction_settings(str(output), settings, overwrite=overwrite)

    check()
    check(second, alpha=0.3)  # there is no result yet
    (output / "a").mkdir()
    (output / "a" / "picture.jpg").write_bytes(b"")
    check(second, alpha=0.3)
    with pytest.raises(ConfigError, match=r"the weights were '.*second\.pth', are '.*first\.pth'"):
        check(first, alpha=0.3)
    with pytest.raises(ConfigError, match=r"settings: --alpha was 0\.3, is not given; --boxes was"):
        check(second, boxes=True)
    cfg.INPUT.MIN_SIZE_TEST = 77
    with pytest.raises(ConfigError, match=r"settings: INPUT\.MIN_SIZE_TEST was 800, is 77; cho"):
        check(second, alpha=0.3)
    check(second, overwrite=True)
    check(second)
    (output / "predict_settings.json").write_text("{")
    with pytest.raises(ConfigError, match="holds results of other settings"):
        check(second)
