"""The entries that come with the package: complete, true to the published table, buildable."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2 import model_zoo
from detectron2.modeling import META_ARCH_REGISTRY

from panoptic_ext.model_zoo import catalog, configs
from panoptic_ext.model_zoo.entry import ZooEntry
from tests import ROOT
from tests.config.shipped import failures
from tests.shared_data import shared_data_folder

TABLE = shared_data_folder().parent / "spec" / "zoo.md"
FILES = sorted((ROOT / "panoptic_ext" / "model_zoo" / "entries").rglob("*.yaml"))
BASE = "https://dl.fbaipublicfiles.com/maskformer/mask2former/"


def built_in() -> list[ZooEntry]:
    return [catalog.find(path.stem if path.parent.name != "backbones" else f"backbones/{path.stem}")
            for path in FILES]  # fmt: skip


def published() -> dict[str, list[str]]:
    """Address -> the row of the published table."""
    if not TABLE.is_file():
        pytest.skip(f"{TABLE} is missing")
    rows = [line.strip("|\n ").split("|") for line in TABLE.read_text().splitlines()]
    table = [[cell.strip() for cell in row] for row in rows if len(row) == 7]
    return {BASE + row[6]: row for row in table if row[6].endswith(".pkl")}


def test_every_file_has_the_name_of_its_entry() -> None:
    assert len(FILES) > 45
    assert [Path(entry.path) for entry in built_in()] == FILES


def test_mask2former_is_complete_and_as_published() -> None:
    rows = published()
    ours = {entry.address: entry for entry in built_in() if entry.address.startswith(BASE)}
    assert len(rows) == 47 and set(ours) == set(rows)
    wrong = []
    for address, entry in ours.items():
        data_set, task, config, _, length, figures, _ = rows[address]
        expected = {}
        for figure in figures.split(", "):
            metric, _, value = figure.rpartition(" ")
            expected[metric] = float(value)
        is_right = (
            dict(entry.figures) == expected
            and entry.task == task.split()[0].lower()
            and entry.config.startswith(data_set.lower().replace(" ", "_") + "/mask2former/")
            and entry.notes == f"published as {config}, trained for {length}"
            and not entry.commercial_use
        )
        wrong += [] if is_right else [entry.name]
    assert not wrong


def test_detectron2s_panoptic_models_have_its_addresses() -> None:
    ours = [entry for entry in built_in() if entry.name.startswith("panoptic_fpn")]
    for entry in ours:
        published = entry.notes.split()[2].rstrip(",")
        assert entry.address == model_zoo.get_checkpoint_url(published)
    assert len(ours) == 3


def test_a_config_names_its_entry() -> None:
    """Only the base files of transformers' models have several entries."""
    for entry in (entry for entry in built_in() if entry.config):
        is_base = "/transformers/Base-" in entry.config
        assert configs.entry_of_config(configs.config_file(entry)) == (None if is_base else entry)


def check_config(entry: ZooEntry) -> None:
    """The config is complete, of the entry's task and data set, and its model is registered."""
    cfg = configs.get_config(entry.name)
    assert cfg.MODEL.META_ARCHITECTURE in META_ARCH_REGISTRY
    assert entry.data_set in cfg.DATASETS.TEST
    assert not cfg.is_frozen()
    assert entry.input["format"] == cfg.INPUT.FORMAT
    if entry.weights.kind == "hub":  # the model's own image processor resizes
        assert entry.weights.value == cfg.MODEL.TRANSFORMERS.NAME_OR_PATH
        assert cfg.MODEL.WEIGHTS == "" and cfg.INPUT.MIN_SIZE_TEST == 0
        return
    assert f"zoo://{entry.name}" == cfg.MODEL.WEIGHTS
    size = {"min_size": cfg.INPUT.MIN_SIZE_TEST, "max_size": cfg.INPUT.MAX_SIZE_TEST}
    assert entry.input == {"format": cfg.INPUT.FORMAT, **size}
    if "mask2former" in entry.config:
        assert entry.task == cfg.MODEL.MASK_FORMER.TASK


def test_every_config_loads_without_any_data(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    models = [entry.name for entry in built_in() if entry.task != "backbone"]
    assert len(models) >= 47
    assert not failures(lambda name: check_config(catalog.find(name)), models)
