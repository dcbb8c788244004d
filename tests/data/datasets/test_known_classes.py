"""The tables of classes agree with Detectron2's, and data sets get them where they have none."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES

from panoptic_ext.data import (
    Category,
    get_metadata,
    get_records,
    register_instances,
    register_panoptic,
)
from panoptic_ext.data.datasets.builtin import builtin_names
from panoptic_ext.data.datasets.known_classes import describe_classes, known_categories
from panoptic_ext.data.datasets.metadata import class_attributes
from panoptic_ext.errors import DatasetError
from tests.tiny.instance_dataset import TinyInstances
from tests.tiny.panoptic_dataset import TinyDataset

pytestmark = pytest.mark.usefixtures("clean_catalogs")

NAME = "street_val"
CATEGORIES = (Category(3, "road", False, (1, 2, 3)), Category(9, "car", True, (4, 5, 6)))


@pytest.mark.parametrize(
    ("name", "classes", "things"),
    [
        ("coco_panoptic_val", 133, 80),
        ("cityscapes_panoptic_train", 19, 8),
        ("ade20k_panoptic_val", 150, 100),
        ("ade20k_instance_val", 100, 100),
        ("mapillary_vistas_panoptic_val", 65, 37),
    ],
)
def test_counts_of_the_publishers(name: str, classes: int, things: int) -> None:
    categories = known_categories(name)
    assert categories is not None and len(categories) == classes
    assert sum(c.isthing for c in categories) == things
    assert len({c.name for c in categories}) == len({c.id for c in categories}) == classes
    assert all(0 <= part <= 255 for c in categories for part in c.color)


def test_every_built_in_data_set_is_known_and_no_other() -> None:
    assert all(known_categories(name) for name in builtin_names())
    assert known_categories("coco_2017_val") is None and known_categories("") is None


def test_ade20k_has_detectron2s_names() -> None:
    categories = known_categories("ade20k_panoptic_val") or ()
    assert [c.name for c in categories] == [name.strip() for name in ADE20K_SEM_SEG_CATEGORIES]
    assert [c.id for c in categories] == list(range(150))


def test_a_data_set_that_is_not_there_gets_the_classes() -> None:
    for _ in range(2):  # the second call finds them
        describe_classes(NAME, class_attributes(CATEGORIES))
    metadata = MetadataCatalog.get(NAME)
    assert metadata.thing_classes == ["road", "car"] and metadata.isthing == (False, True)
    assert metadata.thing_dataset_id_to_contiguous_id == {9: 1}


def test_a_data_set_is_registered_after_a_model_that_was_trained_on_it(tmp_path: Path) -> None:
    describe_classes(NAME, class_attributes(CATEGORIES))
    data = TinyDataset(tmp_path)
    register_panoptic(NAME, data.json, data.images, data.pngs)
    assert get_metadata(NAME).thing_classes == ["road", "car", "person"]
    MetadataCatalog.get("mine").thing_classes = ["road"]
    with pytest.raises(DatasetError, match=r"exists already.*choose another name"):
        register_panoptic("mine", data.json, data.images, data.pngs)


def test_other_classes_are_refused() -> None:
    describe_classes(NAME, class_attributes(CATEGORIES))
    for other in (CATEGORIES[:1], (CATEGORIES[0], CATEGORIES[1]._replace(name="bus"))):
        with pytest.raises(DatasetError, match="registered with 2 classes, and the model has"):
            describe_classes(NAME, class_attributes(other))


def test_a_registered_data_set_keeps_the_classes_of_its_json(tmp_path: Path) -> None:
    data = TinyDataset(tmp_path)
    register_panoptic(NAME, data.json, data.images, data.pngs)
    with pytest.raises(DatasetError, match="registered with 3 classes"):
        describe_classes(NAME, class_attributes(CATEGORIES))
    assert get_metadata(NAME).thing_classes == ["road", "car", "person"]


def test_the_json_of_instances_counts_once_it_is_read(tmp_path: Path) -> None:
    """ADE20K's, written by various scripts, may have other names than the table."""
    data = TinyInstances(tmp_path)
    register_instances(NAME, data.json, data.images)
    named = [Category(1, "vehicle", True, (0, 0, 0)), Category(2, "human", True, (0, 0, 0))]
    vars(get_metadata(NAME)).update(class_attributes(named))
    get_records(NAME)
    assert get_metadata(NAME).thing_classes == ["cup", "plate"]
