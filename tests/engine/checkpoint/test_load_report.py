"""The names that a weight file lacks are summed up by module."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.errors import CheckpointError


def model() -> nn.Module:
    head = nn.Sequential(*[nn.Linear(2, 2) for _ in range(132)])
    backbone = nn.Sequential(*[nn.Linear(2, 2) for _ in range(5)])
    return nn.ModuleDict({"backbone": backbone, "sem_seg_head": head})


def warnings_of(caplog: pytest.LogCaptureFixture, path: Path) -> list[str]:
    with caplog.at_level(logging.INFO, "fvcore.common.checkpoint"):
        Checkpointer(model()).load(str(path))
    return [r.getMessage().strip() for r in caplog.records if r.levelno >= logging.WARNING]


def test_weights_of_a_backbone_alone_get_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = model()["backbone"].state_dict() | {"fc.weight": torch.zeros(3)}
    torch.save(state, tmp_path / "backbone.pth")
    assert warnings_of(caplog, tmp_path / "backbone.pth") == []
    loading, report = [record.getMessage() for record in caplog.records]
    assert loading.startswith("Loading from ")
    assert report == (
        f"{tmp_path / 'backbone.pth'}: backbone loaded whole (10 of 10 tensors of backbone); "
        "sem_seg_head start fresh; not needed of the file: fc"
    )


def test_a_backbone_that_is_not_whole_gets_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = model()["backbone"].state_dict()
    del state["3.bias"]
    torch.save(state, tmp_path / "backbone.pth")
    (missing,) = warnings_of(caplog, tmp_path / "backbone.pth")
    assert missing == (
        "not in the file, these stay at their initial values: backbone (1 of 10: "
        "backbone.3.bias), sem_seg_head (all 264)"
    )
    assert "loaded 9 of 274 tensors of the model; 265 missing" in caplog.text


def test_each_kind_of_difference_gets_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = model().state_dict()
    for i in range(4):
        del state[f"backbone.{i}.weight"]
        state[f"sem_seg_head.{i}.bias"] = torch.zeros(7)
    state |= {"fc.weight": torch.zeros(3), "fc.bias": torch.zeros(3), "logit_scale": torch.zeros(1)}
    torch.save(state, tmp_path / "other.pth")
    missing, shapes, unexpected = warnings_of(caplog, tmp_path / "other.pth")
    assert missing.endswith(
        "backbone (4 of 10: backbone.0.weight, backbone.1.weight, backbone.2.weight and 1 more)"
    )
    assert "sem_seg_head.0.bias is (7,), the model's is (2,); " in shapes
    assert shapes.endswith("; and 1 more")
    assert unexpected == (
        "in the file, but not in the model: fc (2: fc.weight, fc.bias), logit_scale"
    )


def test_a_file_that_fits_gets_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(model().state_dict(), tmp_path / "whole.pth")
    assert warnings_of(caplog, tmp_path / "whole.pth") == []


def test_in_evaluation_the_first_names_are_in_the_error(tmp_path: Path) -> None:
    torch.save(model()["backbone"].state_dict(), tmp_path / "backbone.pth")
    with pytest.raises(
        CheckpointError, match=r"First: sem_seg_head.0.weight is missing; "
    ) as error:
        Checkpointer(model()).load(str(tmp_path / "backbone.pth"), strict=True)
    assert str(error.value).count("is missing") == 3
