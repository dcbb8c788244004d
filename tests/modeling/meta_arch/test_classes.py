"""Classes of the data set that a config names."""

from __future__ import annotations

import pytest
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog

from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.meta_arch.classes import DatasetClasses, classes_of_dataset
from tests.tiny.model_inputs import fake_metadata


@pytest.fixture
def datasets():
    fake_metadata("fake_classes_train", (True, False, True))
    fake_metadata("fake_classes_test", (False, True))
    yield "fake_classes_train", "fake_classes_test"
    for name in ("fake_classes_train", "fake_classes_test"):
        MetadataCatalog.remove(name)


def cfg_of(train=(), test=()):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = train, test
    return cfg


def test_classes_are_those_of_the_first_data_set_of_training(datasets):
    train, test = datasets
    classes = classes_of_dataset(cfg_of((train, test), (test,)))
    assert classes == DatasetClasses(train, (True, False, True))
    assert (classes.num_classes, classes.thing_ids) == (3, [0, 2])


def test_without_training_data_they_are_those_of_the_first_test_data_set(datasets):
    assert classes_of_dataset(cfg_of(test=datasets[1:])).thing_ids == [1]


def test_without_any_data_set_both_keys_are_named():
    with pytest.raises(ConfigError, match=r"DATASETS.TRAIN and DATASETS.TEST are both empty"):
        classes_of_dataset(cfg_of())


def test_a_data_set_without_isthing_is_an_error_that_says_how_to_register_it():
    try:
        with pytest.raises(ConfigError, match="register_panoptic"):
            classes_of_dataset(cfg_of(("fake_without_isthing",)))
    finally:
        MetadataCatalog.remove("fake_without_isthing")
