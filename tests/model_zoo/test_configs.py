"""Configs of entries: complete without data, with the classes of the entry, or a clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from panoptic_ext import model_zoo, register_panoptic
from panoptic_ext.config.shipped import shipped_config
from panoptic_ext.data import get_metadata
from panoptic_ext.errors import ConfigError, DatasetError
from panoptic_ext.model_zoo import configs
from tests.model_zoo.test_entry import write
from tests.tiny.panoptic_dataset import TinyDataset

CLASSES = [
    {"name": "road", "isthing": False, "id": 7},
    {"name": "car", "isthing": True, "id": 3},
    {"name": "person", "isthing": True, "id": 11},
]
CONFIG = """
_BASE_: shapes/mask2former/mask2former_R18_shapes.yaml
MODEL: {DEVICE: cpu}
DATASETS: {TRAIN: [street_train], TEST: [street_val]}
"""


def add(folder: Path, text: str = CONFIG, **changes: Any) -> str:
    """An entry with a config beside it, added; its name."""
    (folder / "config.yaml").write_text(text)
    return model_zoo.add(write(folder, **{"classes": CLASSES, **changes}))[0]


def test_numbers_of_classes_come_from_the_entry(tmp_path: Path) -> None:
    cfg = model_zoo.get_config(add(tmp_path))
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3 and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2
    for name in ("street_train", "street_val"):
        metadata = MetadataCatalog.get(name)
        assert metadata.thing_classes == metadata.stuff_classes == ["road", "car", "person"]
        assert metadata.isthing == (False, True, True)
        assert metadata.thing_dataset_id_to_contiguous_id == {3: 1, 11: 2}
    assert build_model(cfg).state_dict()["criterion.empty_weight"].shape == (3 + 1,)


def test_a_registered_data_set_of_the_name_must_have_the_classes(tmp_path: Path) -> None:
    data = TinyDataset(tmp_path / "data")
    for name in ("street_train", "street_val"):
        register_panoptic(name, data.json, data.images, data.pngs)
    model_zoo.get_config(add(tmp_path))
    assert get_metadata("street_val").panoptic_json == str(data.json), "still the user's"
    (tmp_path / "other").mkdir()
    other = add(tmp_path / "other", classes=CLASSES[:2], name="other")
    with pytest.raises(DatasetError, match=r"registered with 3 classes, and the model has 2"):
        model_zoo.get_config(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": "none.yaml"}, r"config none\.yaml does not exist, neither beside this"),
        ({"data_set": "town_val"}, r"data_set is town_val, but .* names 'street_train', "),
        ({"data_set": "coco_panoptic_val"}, r"coco_panoptic_val is a built-in data set, whose cla"),
        ({"classes": None}, r"the classes of street_val are not known, because it is no built-in"),
        ({"task": "backbone"}, r"weights of a backbone, not a model: .* MODEL.WEIGHTS zoo://my/model"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    if changes.get("task") == "backbone":
        changes = changes | {"config": None}
    with pytest.raises(ConfigError, match=message):
        model_zoo.get_config(add(tmp_path, **changes))


def test_the_weights_to_begin_with(tmp_path: Path) -> None:
    name = add(tmp_path, text=CONFIG.replace("DEVICE: cpu", "WEIGHTS: start.pkl"))
    assert f"zoo://{name}" == model_zoo.get_config(name).MODEL.WEIGHTS
    assert model_zoo.get_config(name, trained=False).MODEL.WEIGHTS == "start.pkl"


def test_a_shipped_config_has_the_classes_of_its_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for data_set, classes in (("mapillary_vistas", 65), ("ade20k", 150)):
        path = shipped_config(f"{data_set}/panoptic_fpn/panoptic_fpn_R50_{data_set}.yaml")
        cfg = configs.load_shipped(path)
        assert classes == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES and not cfg.is_frozen()
        assert len(MetadataCatalog.get(f"{data_set}_panoptic_val").thing_classes) == classes
