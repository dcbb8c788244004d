"""Weights that a checkpoint replaces at once are not fetched: no network to evaluate or resume."""

from __future__ import annotations

import pytest
from detectron2.data import MetadataCatalog

from panoptic_ext.engine import main
from panoptic_ext.engine.run_config import without_pretrained
from panoptic_ext.engine.trainer import Trainer
from panoptic_ext.prediction import predictor
from tests.tiny.training import tiny_cfg

NAME = "pretrained_test"


class BuiltWithError(Exception):
    """Carries the config that a model was built with."""

    def __init__(self, cfg, *args):
        super().__init__(cfg)
        self.cfg = cfg


def refuse(cfg, *args):
    raise BuiltWithError(cfg)


@pytest.fixture
def cfg(tmp_path):
    MetadataCatalog.get(NAME).set(thing_classes=["a"], stuff_classes=["a"])
    cfg = tiny_cfg(tmp_path)
    cfg.MODEL.TIMM.PRETRAINED = True
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (NAME,)
    cfg.freeze()
    yield cfg
    MetadataCatalog.remove(NAME)


def test_a_copy_with_the_key_off(cfg):
    other = without_pretrained(cfg)
    assert not other.MODEL.TIMM.PRETRAINED and other.is_frozen()
    assert cfg.MODEL.TIMM.PRETRAINED


def test_evaluation_fetches_nothing(cfg, monkeypatch):
    monkeypatch.setattr(Trainer, "build_model", staticmethod(refuse))
    with pytest.raises(BuiltWithError) as found:
        main._evaluate(cfg, resume=False)
    assert not found.value.cfg.MODEL.TIMM.PRETRAINED


def test_prediction_fetches_nothing(cfg, monkeypatch):
    monkeypatch.setattr(predictor, "build_model", refuse)
    with pytest.raises(BuiltWithError) as found:
        predictor.Predictor(cfg, weights="some.pth")
    assert not found.value.cfg.MODEL.TIMM.PRETRAINED


@pytest.mark.parametrize("resumes", [False, True])
def test_a_training_fetches_unless_it_resumes(cfg, monkeypatch, resumes):
    monkeypatch.setattr(Trainer, "build_model", staticmethod(refuse))
    with pytest.raises(BuiltWithError) as found:
        Trainer(cfg, weights_follow=resumes)
    assert found.value.cfg.MODEL.TIMM.PRETRAINED is not resumes
