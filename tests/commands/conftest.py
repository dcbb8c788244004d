"""A finished run and predictions of two models, for the commands that read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny.combine_case import Case
from tests.tiny.finished_run import finished_run


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set in `data` and the files of a training run in `run`."""
    folder = tmp_path_factory.mktemp("predict")
    finished_run(folder)
    return folder
