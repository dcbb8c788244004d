from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.data import (
    PanopticDatasetMapper,
    get_records,
    register_from_config,
    register_instances,
    register_panoptic,
)
from panoptic_ext.data.datasets.metadata import PanopticMetadata
from panoptic_ext.data.datasets.metadata_file import load_metadata, save_metadata
from panoptic_ext.errors import ConfigError, DatasetError
from tests.tiny.panoptic_dataset import TinyDataset

BLOCK = {"JSON": "tiny/panoptic.json", "IMAGE_ROOT": "tiny/images", "PNG_ROOT": "tiny/panoptic"}


def config(search_path: list[Any], **block: Any) -> CfgNode:
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.DATASETS.SEARCH_PATH = [str(folder) for folder in search_path]
    cfg.DATASETS.PANOPTIC.tiny = CfgNode({**BLOCK, **block})
    return cfg


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)


def test_a_block_is_a_data_set(tiny: TinyDataset) -> None:
    cfg = config([tiny.root.parent], IGNORE_LABEL=250, EVALUATOR_TYPE="other")
    register_from_config(cfg)
    register_from_config(cfg)
    assert len(get_records("tiny")) == 2
    metadata = MetadataCatalog.get("tiny")
    assert metadata.panoptic_json == str(tiny.json)
    assert (metadata.ignore_label, metadata.evaluator_type) == (250, "other")
    cfg.DATASETS.TRAIN = ("tiny",)
    cfg.INPUT.MIN_SIZE_TRAIN = (24,)
    sample = PanopticDatasetMapper(cfg, True)(get_records("tiny")[0])
    assert set(sample["sem_seg"].unique().tolist()) == {0, 1, 250}


def test_order_of_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: TinyDataset
) -> None:
    for place in ("variable", "first", "second", "here"):
        TinyDataset(tmp_path / place / "tiny")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "variable"))
    register_from_config(config(["../first", tmp_path / "second"]))
    metadata = MetadataCatalog.get("tiny")
    for place in ("variable", "first", "second", "here"):
        metadata.__dict__.pop("panoptic_json", None)
        assert metadata.panoptic_json == str(tmp_path / place / BLOCK["JSON"])
        os.remove(tmp_path / place / BLOCK["JSON"])
    metadata.__dict__.pop("panoptic_json")
    with pytest.raises(DatasetError) as error:
        DatasetCatalog.get("tiny")
    for place in ("variable", "first", "second", "here"):
        assert str(tmp_path / place / BLOCK["JSON"]) in str(error.value)
    assert "DETECTRON2_DATASETS" in str(error.value)
    assert "DATASETS.SEARCH_PATH" in str(error.value)


def test_variables_and_home_are_expanded(
    tiny: TinyDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tiny.root.parent))
    monkeypatch.setenv("WHERE", str(tiny.root))
    cfg = config([], JSON="~/tiny/panoptic.json", IMAGE_ROOT="$WHERE/images")
    cfg.DATASETS.PANOPTIC.tiny.PNG_ROOT = str(tiny.pngs)
    register_from_config(cfg)
    assert len(get_records("tiny")) == 2


def test_an_unknown_key_of_a_block_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"PANOPTIC\.tiny .*'IMAGE_DIR'.*mean 'IMAGE_ROOT'"):
        register_from_config(config([], IMAGE_DIR="x"))


@pytest.mark.parametrize("value", ["", None, True, ["a"]])
def test_required_keys(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"PANOPTIC\.tiny\.PNG_ROOT is .*, expected a path"):
        register_from_config(config([], PNG_ROOT=value))


def test_a_block_that_is_none() -> None:
    cfg = config([])
    cfg.DATASETS.PANOPTIC.other = "panoptic.json"
    with pytest.raises(ConfigError, match=r"PANOPTIC\.other is 'panoptic\.json', expected a block"):
        register_from_config(cfg)


def test_unknown_encoding_of_a_block() -> None:
    with pytest.raises(DatasetError, match="unknown encoding 'RGB'"):
        register_from_config(config([], ENCODING="RGB"))


def test_a_quoted_number_is_a_folder(tiny: TinyDataset) -> None:
    os.rename(tiny.images, tiny.root / "2017")
    cfg = config([tiny.root])
    del cfg.DATASETS.PANOPTIC["tiny"]
    block = "{JSON: panoptic.json, IMAGE_ROOT: '2017', PNG_ROOT: panoptic}"
    (tiny.root / "c.yaml").write_text(f"DATASETS: {{PANOPTIC: {{tiny: {block}}}}}")
    cfg.merge_from_file(str(tiny.root / "c.yaml"))
    register_from_config(cfg)
    assert len(get_records("tiny")) == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [("LABEL_DIVISOR", "abc"), ("LABEL_DIVISOR", 0), ("IGNORE_LABEL", 2.5), ("ENCODING", ["rgb"])],
)
def test_values_of_a_block(key: str, value: Any) -> None:
    with pytest.raises((ConfigError, DatasetError), match=f"{key}|unknown encoding"):
        register_from_config(config([], **{key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("IMAGE_SIZE", [128]),
        ("IMAGE_SIZE", [128, 160, 3]),
        ("IMAGE_SIZE", [128, "wide"]),
        ("IMAGE_SIZE", 128),
        ("IMAGE_SIZE", [8, 160]),
        ("NUM_TRAIN", 2.5),
        ("NUM_VAL", None),
        ("MAX_OBJECTS", "many"),
        ("SEED", -1),
        ("CACHE", []),
    ],
)
def test_values_of_shapes(key: str, value: Any) -> None:
    cfg = config([])
    cfg.DATASETS.SHAPES[key] = value
    with pytest.raises(ConfigError, match=r"DATASETS\.SHAPES"):
        register_from_config(cfg)


def test_shapes_follow_the_config(tmp_path: Path) -> None:
    cfg = config([])
    cfg.DATASETS.SHAPES.merge_from_list(
        ["IMAGE_SIZE", [64, 80], "NUM_VAL", 2, "CACHE", str(tmp_path)]
    )
    register_from_config(cfg)
    records = get_records("shapes_panoptic_val")
    assert [(r["height"], r["width"]) for r in records] == [(64, 80)] * 2


def test_the_same_files_are_the_same_data_set_however_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: TinyDataset
) -> None:
    monkeypatch.chdir(tmp_path)
    block = config([tiny.root.parent])
    register_panoptic("tiny", *BLOCK.values())  # relative to the current folder, no search path
    register_from_config(block)
    register_panoptic("tiny", *tiny.paths())
    with pytest.raises(DatasetError, match=r"content: png_root is '.*panoptic' there, '.*images'"):
        register_panoptic("tiny", *tiny.paths()[:2], png_root=tiny.images)
    block.DATASETS.PANOPTIC.clear()
    block.DATASETS.INSTANCES.one = CfgNode({key: BLOCK[key] for key in ("JSON", "IMAGE_ROOT")})
    register_instances("one", *tiny.paths()[:2])
    register_from_config(block)
    with pytest.raises(DatasetError, match=r"content: image_root is '.*' there, '.*panoptic' here"):
        register_instances("one", tiny.json, tiny.pngs)


def test_a_model_that_predicts_leaves_a_registration_with_its_classes(
    tmp_path: Path, tiny: TinyDataset
) -> None:
    save_metadata(PanopticMetadata("run", tiny.source()), str(tmp_path / "metadata.json"))
    trained_on = load_metadata(str(tmp_path / "metadata.json"))
    elsewhere = TinyDataset(tmp_path / "elsewhere")
    register_panoptic("tiny", *elsewhere.paths())
    register_from_config(config([tmp_path]), trained_on=trained_on)
    assert MetadataCatalog.get("tiny").panoptic_json == str(elsewhere.json)
    with pytest.raises(DatasetError, match="registered with other content"):
        register_from_config(config([tmp_path]))
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.remove("tiny")
    elsewhere.info["categories"][0]["name"] = "street"
    elsewhere.save()
    register_panoptic("tiny", *elsewhere.paths())
    with pytest.raises(DatasetError, match=r"other classes.*street, car, person there, road, car"):
        register_from_config(config([tmp_path]), trained_on=trained_on)
    elsewhere.json.unlink()  # nothing is known of its classes, and nothing needs it
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.remove("tiny")
    register_panoptic("tiny", *elsewhere.paths())
    register_from_config(config([tmp_path]), trained_on=trained_on)
    assert MetadataCatalog.get("tiny").source.json == str(elsewhere.json)
