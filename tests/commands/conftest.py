"""A finished run and predictions of two models, for the commands that read them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from tests.tiny.combine_case import Case
from tests.tiny.finished_run import NAME, finished_run
from tests.tiny.zoo import own_zoo as own_zoo
from tests.tiny.zoo import served as served
from tests.tiny.zoo import tiny_entry as tiny_entry
from tests.tiny.zoo import zoo_run as zoo_run


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a data set in `data` and the files of a training run in `run`."""
    folder = tmp_path_factory.mktemp("predict")
    finished_run(folder)
    yield folder
    # Another file's tests register a folder of their own under the same name.
    for catalog in (DatasetCatalog, MetadataCatalog):
        if NAME in catalog.list():
            catalog.remove(NAME)
