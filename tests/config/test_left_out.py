"""A Detectron2 user's own code builds every shipped model: what was never set is derived."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.modeling import META_ARCH_REGISTRY, SemanticSegmentor, build_model

from panoptic_ext import add_panoptic_ext_config
from panoptic_ext.config.left_out import DERIVED_KEYS, complete_config, get_key, is_left_out
from panoptic_ext.data import PanopticDatasetMapper
from panoptic_ext.engine.optimizer import build_lr_scheduler, build_optimizer
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.meta_arch.base import MetaArchitecture
from panoptic_ext.modeling.meta_arch.transformers_panoptic import TransformersPanoptic
from tests import ROOT
from tests.config.shipped import LEAVES, failures, tiny_network, without_initialisation
from tests.config.test_configs import CLASSES, THINGS
from tests.tiny.panoptic_dataset import TinyDataset

SHAPES = ROOT / "configs/shapes/mask2former/mask2former_R18_shapes.yaml"
HEAD, VOID, BOXES = DERIVED_KEYS
# As deep as a test needs: the numbers of classes are in the heads.
SHALLOW = {
    "MODEL.SWIN.DEPTHS": [1, 1, 1, 1],
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.MASK_FORMER.DEC_LAYERS": 2,
    "MODEL.TIMM.PRETRAINED": False,
    "MODEL.DEVICE": "cpu",
}


def user_cfg(path: Path | str, **values: Any) -> CfgNode:
    """The config that a user of Detectron2 makes, without load_cfg."""
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.merge_from_file(str(path))
    cfg.merge_from_list([part for pair in {**SHALLOW, **values}.items() for part in pair])
    return cfg


def numbers(cfg: CfgNode) -> dict[str, Any]:
    return {key: get_key(cfg, key) for key in DERIVED_KEYS}


def num_classes(model: torch.nn.Module) -> int:
    """Number of classes of the queries (without "no object"), or of the semantic head."""
    if isinstance(model, TransformersPanoptic):
        return model.network.config.num_labels
    if hasattr(model, "criterion"):
        return model.criterion.num_classes
    return model.sem_seg_head.predictor.out_channels


def check_build(path: Path) -> None:
    cfg = user_cfg(path, **tiny_network(path))
    cfg.freeze()
    with without_initialisation():
        model = build_model(cfg)
    data_set = path.parts[-3]
    assert num_classes(model) == (THINGS if "_instance_" in path.name else CLASSES)[data_set]
    assert all(is_left_out(cfg, key) for key in DERIVED_KEYS), "the user's config was changed"
    if hasattr(model, "roi_heads"):
        assert model.roi_heads.num_classes == THINGS[data_set]


@pytest.mark.slow
def test_every_shipped_yaml_is_built_by_detectron2s_build_model(dataset_jsons: Path) -> None:
    assert failures(check_build, LEAVES) == {}


def test_a_yaml_of_each_model_is_built_by_detectron2s_build_model(dataset_jsons: Path) -> None:
    by_model = {path.parts[-2]: path for path in LEAVES if path.parts[-3] == "coco"}
    assert len(by_model) >= 2
    assert failures(check_build, [*by_model.values(), SHAPES]) == {}


@pytest.fixture
def tiny(tmp_path: Path, clean_catalogs: None) -> TinyDataset:
    return TinyDataset(tmp_path / "tiny")


def block_file(tiny: TinyDataset, folder: Path, more: dict[str, Any] | None = None) -> Path:
    """A YAML file with shapes' small model that describes the data set in a block."""
    names = ["mine_train"]
    paths = dict(zip(("JSON", "IMAGE_ROOT", "PNG_ROOT"), map(str, tiny.paths()), strict=True))
    content = {
        "_BASE_": str(SHAPES),
        "DATASETS": {"TRAIN": names, "TEST": names, "PANOPTIC": {"mine_train": paths}},
        "MODEL": {"SEM_SEG_HEAD": more or {}},
    }
    (folder / "mine.yaml").write_text(json.dumps(content))
    return folder / "mine.yaml"


def test_a_data_set_of_a_block_is_registered_when_the_model_is_built(
    tiny: TinyDataset, tmp_path: Path
) -> None:
    cfg = user_cfg(block_file(tiny, tmp_path))
    assert "mine_train" not in DatasetCatalog
    model = build_model(cfg)
    assert num_classes(model) == 3
    assert len(DatasetCatalog.get("mine_train")) == 2
    build_model(cfg)  # again: the data set is there already


@pytest.mark.parametrize("number", [3, 54, 7])
def test_a_number_that_was_set_counts_and_is_wrong_if_it_contradicts(
    tiny: TinyDataset, tmp_path: Path, number: int
) -> None:
    """54 is Detectron2's default: set in a file, by merge_from_list or as an attribute."""
    by_file = user_cfg(block_file(tiny, tmp_path, {"NUM_CLASSES": number}))
    by_list = user_cfg(block_file(tiny, tmp_path), **{HEAD: number})
    by_hand = user_cfg(block_file(tiny, tmp_path))
    by_hand.MODEL.SEM_SEG_HEAD.NUM_CLASSES = number
    for cfg in (by_file, by_list, by_hand):
        assert not is_left_out(cfg, HEAD) and is_left_out(cfg, BOXES)
        if number == 3:
            assert num_classes(build_model(cfg)) == 3
            continue
        with pytest.raises(ConfigError, match=rf"NUM_CLASSES is {number}, but data set mine_train"):
            build_model(cfg)


def test_void_is_derived_too(tiny: TinyDataset, tmp_path: Path) -> None:
    cfg = user_cfg(block_file(tiny, tmp_path))
    cfg.DATASETS.PANOPTIC.mine_train.IGNORE_LABEL = 65
    assert build_model(cfg).ignore_value == 65


def copies(cfg: CfgNode, folder: Path) -> list[CfgNode]:
    """The config after everything that users and Detectron2 do with one."""
    (folder / "config.yaml").write_text(cfg.dump())
    again, merged = (user_cfg(SHAPES) for _ in range(2))
    again.merge_from_file(str(folder / "config.yaml"))
    merged.merge_from_other_cfg(cfg)
    return [cfg.clone(), copy.deepcopy(cfg), pickle.loads(pickle.dumps(cfg)), again, merged]


@pytest.mark.parametrize("given", [{}, {HEAD: 54}, {BOXES: 80, VOID: 255}])
def test_keys_that_are_left_out_stay_left_out_in_every_copy(
    tmp_path: Path, given: dict[str, int]
) -> None:
    cfg = user_cfg(SHAPES, **given)
    cfg.freeze()
    for other in copies(cfg, tmp_path):
        assert {k for k in DERIVED_KEYS if not is_left_out(other, k)} == set(given)
        assert numbers(other) == {HEAD: 54, VOID: 255, BOXES: 80}  # what Detectron2's models read


def test_detectron2s_models_have_their_numbers() -> None:
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    add_panoptic_ext_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x"
                                                  ".yaml"))  # fmt: skip
    cfg.MODEL.DEVICE = "cpu"
    with without_initialisation():
        model = build_model(cfg)
    assert (num_classes(model), model.roi_heads.num_classes) == (54, 80)
    assert model.sem_seg_head.ignore_value == 255
    assert cfg.MODEL.ROI_HEADS.get("NUM_CLASSES") == 80 and cfg.MODEL.ROI_HEADS.get("NO", 1) == 1


def test_the_numbers_are_checked_as_detectron2_checks_them() -> None:
    cfg = user_cfg(SHAPES)
    with pytest.raises(ValueError, match="Type mismatch"):
        cfg.merge_from_list([HEAD, "many"])
    with pytest.raises(KeyError, match=r"Non-existent config key: MODEL\.SEM_SEG_HEAD\.NUM_CLASS"):
        cfg.merge_from_other_cfg(CfgNode({"MODEL": {"SEM_SEG_HEAD": {"NUM_CLASS": 1}}}))


def test_load_cfg_writes_real_numbers(tiny: TinyDataset, tmp_path: Path) -> None:
    cfg = load_cfg(str(block_file(tiny, tmp_path)), ["MODEL.DEVICE", "cpu"])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = user_cfg(tmp_path / "config.yaml")
    assert numbers(again) == {HEAD: 3, VOID: 255, BOXES: 2}
    assert not any(is_left_out(again, key) for key in DERIVED_KEYS)
    tiny.json.unlink()
    MetadataCatalog.get("mine_train").set()
    without_data = load_cfg(str(SHAPES), ["MODEL.DEVICE", "cpu"], use_data=False)
    assert numbers(without_data) == {HEAD: 54, VOID: 255, BOXES: 80}
    assert "null" not in without_data.MODEL.ROI_HEADS.dump()


def test_a_run_of_train_net_is_read_by_a_default_predictor(
    tiny: TinyDataset, tmp_path: Path
) -> None:
    """Its config.yaml describes the data set, which no other process has registered."""
    cfg = load_cfg(str(block_file(tiny, tmp_path)), ["MODEL.DEVICE", "cpu"])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop("mine_train")
    predictor = DefaultPredictor(user_cfg(tmp_path / "config.yaml"))
    assert num_classes(predictor.model) == 3
    assert list(predictor.metadata.thing_classes) == ["road", "car", "person"]


@META_ARCH_REGISTRY.register()
class ForeignSegmentor(MetaArchitecture, SemanticSegmentor):
    """A third party's model: Detectron2's, with contiguous classes."""

    has_contiguous_classes = True

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return super().from_config(complete_config(cfg, cls))


def test_a_model_of_another_package_derives_its_numbers(tiny: TinyDataset, tmp_path: Path) -> None:
    values = {
        "MODEL.META_ARCHITECTURE": "ForeignSegmentor",
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.SEM_SEG_HEAD.NAME": "SemSegFPNHead",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    }
    assert num_classes(build_model(user_cfg(block_file(tiny, tmp_path), **values))) == 3


class TrainerOfAUser(DefaultTrainer):
    """With the mapper, and the optimizer whose CLIP_TYPE full_model Detectron2 lacks."""

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return build_detection_train_loader(cfg, mapper=PanopticDatasetMapper(cfg, True))


@pytest.mark.parametrize("frozen", [True, False])
def test_default_trainer_and_default_predictor(
    tiny: TinyDataset, tmp_path: Path, frozen: bool
) -> None:
    values = {"SOLVER.IMS_PER_BATCH": 2, "SOLVER.MAX_ITER": 1, "DATALOADER.NUM_WORKERS": 0}
    cfg = user_cfg(block_file(tiny, tmp_path), OUTPUT_DIR=str(tmp_path / "out"), **values)
    (tmp_path / "out").mkdir()
    if frozen:
        cfg.freeze()
    trainer = TrainerOfAUser(cfg)
    assert num_classes(trainer.model) == 3
    trainer.train()
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(tmp_path / "out" / "model_final.pth")
    predictor = DefaultPredictor(cfg)
    ids, segments = predictor(np.zeros((32, 48, 3), np.uint8))["panoptic_seg"]
    assert ids.shape == (32, 48) and all(s["category_id"] < 3 for s in segments)


def test_model_zoo_builds_a_shipped_yaml(
    tiny: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`detectron2.model_zoo.get` with get_cfg and the folder of files replaced by a user's."""

    def get_cfg_of_a_user() -> CfgNode:
        cfg = get_cfg()
        add_panoptic_ext_config(cfg)
        return cfg

    monkeypatch.setattr(model_zoo.model_zoo, "get_cfg", get_cfg_of_a_user)
    monkeypatch.setattr(model_zoo.model_zoo, "get_config_file", str)
    model = model_zoo.get(str(block_file(tiny, tmp_path)), device="cpu")
    assert num_classes(model) == 3
