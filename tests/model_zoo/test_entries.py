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


# How the published tables of EoMT print an entry's figure.
EOMT = {
    "eomt_small_640_2x_coco": "| v2 S 640 2x | {} |",
    "eomt_base_640_2x_coco": "| v2 B 640 2x | {} |",
    "eomt_large_640_coco": "| v2 L 640 | {} |",
    "eomt_large_1280_coco": "| v2 L 1280 | {} |",
    "eomt_giant_640_coco": "| v2 g 640 | {} |",
    "eomt_giant_1280_coco": "| v2 g 1280 | {} |",
    "eomt_small_640_dinov3_coco": "| v3 S 640 2x | {} |",
    "eomt_base_640_dinov3_coco": "| v3 B 640 2x | {} |",
    "eomt_large_640_dinov3_coco": "| v3 L 640 | {} |",
    "eomt_large_1280_dinov3_coco": "| v3 L 1280 | {} |",
    "eomt_instance_large_640_coco": "mask AP L: {}/48.8 (v2",
    "eomt_instance_large_1280_coco": "mask AP L: 45.2/{} (v2",
    "eomt_instance_large_640_dinov3_coco": ", {}/49.9 (v3)",
    "eomt_instance_large_1280_dinov3_coco": ", 45.9/{} (v3)",
    "eomt_large_640_ade20k": ": L640 {},",
    "eomt_large_1280_ade20k": " L1280 {},",
    "eomt_giant_640_ade20k": " g640 {},",
    "eomt_giant_1280_ade20k": " g1280 {}.",
    "eomt_semantic_large_512_ade20k": "ADE20K mIoU {} (v2",
    "eomt_semantic_large_512_dinov3_ade20k": "/ {} (v3). Cityscapes",
    "eomt_semantic_large_1024_cityscapes": "Cityscapes mIoU {} (L1024)",
}


def eomt() -> dict[str, ZooEntry]:
    return {e.name: e for e in built_in() if e.config.split("/")[1:2] == ["eomt"]}


def test_eomt_is_complete_and_as_published() -> None:
    table = TABLE.with_name("eomt.md")
    if not table.is_file():
        pytest.skip(f"{table} is missing")
    text = table.read_text().partition("## 8.")[2].partition("## 9.")[0]
    ours = eomt()
    assert set(ours) == set(EOMT)
    for name, row in EOMT.items():
        (metric,) = ours[name].figures
        assert metric == {"panoptic": "PQ", "instance": "AP", "semantic": "mIoU"}[ours[name].task]
        assert row.format(ours[name].figures[metric]) in text, name


def test_eomt_has_the_published_address_and_the_encoders_licence() -> None:
    for entry in eomt().values():
        assert entry.address == f"{entry.source}/resolve/main/pytorch_model.bin"
        is_v3 = "dinov3" in entry.name
        assert is_v3 == entry.source.endswith("dinov3") == ("DINOv3" in entry.licence)
        assert bool(configs.get_config(entry.name).MODEL.EOMT.ENCODER_WEIGHTS) == is_v3


# PMT's figures in its published tables.
PMT = {
    "pmt_small_640_coco": 45.3,
    "pmt_base_640_coco": 52.8,
    "pmt_large_640_coco": 56.1,
    "pmt_large_1280_coco": 58.1,
    "pmt_instance_large_640_coco": 45.4,
    "pmt_instance_large_1280_coco": 49.0,
    "pmt_semantic_large_512_ade20k": 58.5,
}


def test_pmt_is_complete_and_as_published() -> None:
    entries = [e for e in built_in() if e.config.split("/")[1:2] == ["pmt"]]
    assert {e.name: next(iter(e.figures.values())) for e in entries} == PMT
    for entry in entries:
        assert entry.address == f"{entry.source}/resolve/main/pytorch_model.bin"
        assert entry.source.endswith("_dinov3") and "DINOv3" in entry.licence
        assert configs.get_config(entry.name).MODEL.EOMT.ENCODER_WEIGHTS


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
    if entry.config.split("/")[1] in ("mask2former", "eomt", "pmt"):
        assert entry.task == cfg.MODEL.MASK_FORMER.TASK


def test_every_config_loads_without_any_data(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    models = [entry.name for entry in built_in() if entry.task != "backbone"]
    assert len(models) >= 47
    assert not failures(lambda name: check_config(catalog.find(name)), models)
