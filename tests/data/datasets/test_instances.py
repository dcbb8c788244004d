"""Data sets of instances alone: registration, checks, and what the mapper makes of them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.data import (
    PanopticDatasetMapper,
    check_panoptic,
    count_segments,
    filter_empty,
    get_metadata,
    get_records,
    num_classes,
    register_from_config,
    register_instances,
    thing_ids,
)
from panoptic_ext.data.augmentation import VoidPadTransform
from panoptic_ext.data.resize_crop import ResizeCropTransform
from panoptic_ext.errors import ConfigError, DatasetError
from tests.tiny.instance_dataset import CUP, HEIGHT, PLATE, WIDTH, TinyInstances

NAME = "tiny_instances"


@pytest.fixture
def tiny_instances(tmp_path: Path) -> TinyInstances:
    data = TinyInstances(tmp_path / "tiny")
    register_instances(NAME, data.json, data.images)
    return data


def mapped(record: dict[str, Any], *augmentations: Any, keep_empty: bool = False) -> dict[str, Any]:
    mapper = PanopticDatasetMapper(
        True,
        augmentations=list(augmentations),
        image_format="RGB",
        targets=["instances"],
        keep_empty=keep_empty,
    )
    return mapper(record)


def test_classes_are_known_before_anything_else_is_read(tiny_instances: TinyInstances) -> None:
    assert (num_classes(NAME), thing_ids(NAME)) == (2, (0, 1))
    metadata = get_metadata(NAME)
    assert metadata.thing_classes == ["cup", "plate"]
    assert metadata.thing_dataset_id_to_contiguous_id == {4: 0, 9: 1}
    assert pickle.loads(pickle.dumps(metadata)).isthing == (True, True)


def test_detectron2s_registration_serves_as_well(tiny_instances: TinyInstances) -> None:
    register_coco_instances("theirs", {}, str(tiny_instances.json), str(tiny_instances.images))
    assert (num_classes("theirs"), thing_ids("theirs")) == (2, (0, 1))
    assert get_metadata("theirs").isthing == (True, True)
    assert get_records("theirs") == get_records(NAME)


def test_coco_is_known_without_its_files() -> None:
    assert num_classes("coco_2017_train") == len(thing_ids("coco_2017_train")) == 80
    assert num_classes("cityscapes_fine_instance_seg_val") == 8
    with pytest.raises(DatasetError, match=r"'coco_2017_train' cannot be read: .*README"):
        get_records("coco_2017_train")


def test_a_block_of_yaml_registers_it(tiny_instances: TinyInstances) -> None:
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.DATASETS.SEARCH_PATH = [str(tiny_instances.root)]
    cfg.DATASETS.INSTANCES.mine = CfgNode({"JSON": "instances.json", "IMAGE_ROOT": "images"})
    for _ in range(2):
        register_from_config(cfg)
    assert len(get_records("mine")) == 2
    cfg.DATASETS.INSTANCES.mine.PNG_ROOT = "panoptic"
    with pytest.raises(ConfigError, match=r"unknown key of DATASETS.INSTANCES.mine 'PNG_ROOT'"):
        register_from_config(cfg)


def test_a_taken_name_is_refused(tiny_instances: TinyInstances) -> None:
    register_instances(NAME, tiny_instances.json, tiny_instances.images)
    with pytest.raises(DatasetError, match="registered with other content: image_root"):
        register_instances(NAME, tiny_instances.json, "elsewhere")


def test_overlapping_masks_stay_whole_and_crowds_are_left_out(
    tiny_instances: TinyInstances,
) -> None:
    first, second = (mapped(record)["instances"] for record in get_records(NAME))
    assert first.gt_classes.tolist() == [PLATE, CUP] and second.gt_classes.tolist() == [PLATE]
    for mask, category in zip(first.gt_masks.tensor, (PLATE, CUP), strict=True):
        assert np.array_equal(mask.numpy(), tiny_instances.masks[category])
    assert first.gt_boxes.tensor.tolist() == [[5, 10, 45, 30], [20, 12, 30, 22]]


@pytest.mark.filterwarnings("error::DeprecationWarning")  # numpy 2's
def test_masks_follow_the_image(tiny_instances: TinyInstances) -> None:
    """Polygons and run lengths against the same geometry on arrays: flip, twice the size, a crop
    that cuts the plate off, padding."""
    record = get_records(NAME)[0]
    steps = [
        T.HFlipTransform(WIDTH),
        ResizeCropTransform(HEIGHT, WIDTH, 2 * HEIGHT, 2 * WIDTH, 50, 22, 60, 30),
        VoidPadTransform(4, 3, (0, 0, 0)),
    ]
    sample = mapped(record, *steps)
    assert sample["image"].shape == (3, 33, 64)
    for mask, category in zip(
        sample["instances"].gt_masks.tensor, sample["instances"].gt_classes.tolist(), strict=True
    ):
        doubled = tiny_instances.masks[category][:, ::-1].repeat(2, 0).repeat(2, 1)
        expected = np.zeros((33, 64), bool)
        expected[:30, :60] = doubled[22:52, 50:110]
        assert np.array_equal(mask.numpy(), expected)
    rows, columns = np.nonzero(expected)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert sample["instances"].gt_boxes.tensor[-1].tolist() == box
    assert record == get_records(NAME)[0], "the record was changed"


def test_an_instance_that_is_cut_away_is_left_out_or_empty(tiny_instances: TinyInstances) -> None:
    away = ResizeCropTransform(HEIGHT, WIDTH, HEIGHT, WIDTH, 50, 32, 10, 8)
    instances = mapped(get_records(NAME)[0], away)["instances"]
    assert len(instances) == 0 and instances.gt_masks.tensor.shape == (0, 8, 10)
    instances = mapped(get_records(NAME)[0], away, keep_empty=True)["instances"]
    assert instances.gt_classes.tolist() == [PLATE, CUP] and not instances.gt_masks.tensor.any()


def test_an_image_of_crowd_alone_has_no_instance(tiny_instances: TinyInstances) -> None:
    record = get_records(NAME)[0]
    crowd = [{**annotation, "iscrowd": 1} for annotation in record["annotations"]]
    instances = mapped({**record, "annotations": crowd})["instances"]
    assert instances.gt_masks.tensor.shape == (0, HEIGHT, WIDTH)
    assert instances.gt_boxes.tensor.shape == (0, 4) and instances.gt_classes.dtype == torch.int64
    assert filter_empty([record, {**record, "annotations": crowd}]) == [record]


def test_a_mask_of_another_size_names_the_image(tiny_instances: TinyInstances) -> None:
    record = get_records(NAME)[0]
    record["annotations"][0]["segmentation"]["size"] = [HEIGHT, WIDTH + 1]
    with pytest.raises(DatasetError, match=r"image id 1, annotation 0 has a mask of 40 x 61"):
        mapped(record)


def annotation(**values: Any) -> Callable[[TinyInstances], Any]:
    return lambda data: data.info["annotations"][1].update(values)


SPOILED = [
    ("missing-key", lambda data: data.info.pop("annotations")),
    ("no-categories", lambda data: data.info.pop("categories")),
    ("bad-category", lambda data: data.info["categories"][0].pop("name")),
    ("duplicate-category", lambda data: data.info["categories"][0].update(id=4)),
    ("bad-image", lambda data: data.info["images"][0].update(id="one")),
    ("duplicate-image-id", lambda data: data.info["images"][0].update(id=2)),
    ("bad-size", lambda data: data.info["images"][0].update(height=0)),
    ("unsafe-name", lambda data: data.info["images"][0].update(file_name="../1.png")),
    ("missing-image", lambda data: (data.images / "2.png").unlink()),
    ("bad-annotation", annotation(id=None)),
    ("duplicate-annotation", annotation(id=1)),
    ("no-image-entry", annotation(image_id=[1])),
    ("unknown-category", annotation(category_id=5)),
    ("bad-bbox", annotation(bbox=[])),
    ("no-mask", annotation(segmentation=[])),
    ("no-mask", annotation(segmentation=[[1, 2, 3, 4]])),
    ("no-mask", annotation(segmentation={"size": [1, 2]})),
]


@pytest.mark.parametrize(("kind", "spoil"), SPOILED)
def test_loader_and_check_name_the_kind_of_each_mistake(
    kind: str, spoil: Callable[[TinyInstances], Any], tiny_instances: TinyInstances
) -> None:
    spoil(tiny_instances)
    tiny_instances.save()
    with pytest.raises(DatasetError, match=rf"\[{kind}\]"):
        get_records(NAME)
    assert any(
        kind in (problem.kind, str(problem)) or f"[{kind}]" in str(problem)
        for problem in check_panoptic(NAME)
    )


def test_an_instances_json_that_is_no_json_is_called_by_its_name(
    tiny_instances: TinyInstances,
) -> None:
    Path(tiny_instances.json).write_text("[1")
    with pytest.raises(DatasetError, match=r"^instances JSON .*instances\.json \(2 bytes\) is not"):
        get_records(NAME)
    (problem,) = check_panoptic(NAME)
    assert problem.message.startswith("instances JSON ")


def test_the_check_opens_images(tiny_instances: TinyInstances) -> None:
    assert check_panoptic(NAME) == []
    assert count_segments(NAME) == "2 images, 2 things, 4 instances"
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(tiny_instances.images / "1.png")
    (tiny_instances.images / "2.png").write_bytes(b"no image")
    problems = check_panoptic(NAME)
    assert [p.kind for p in problems] == ["size-mismatch", "damaged-image"]
    assert str(problems[1]).count("cannot be read") == 1 and problems[1].mend == "copy it again"
    assert check_panoptic(NAME, pixels=False) == []


def test_crops_by_area_are_plain_crops(tiny_instances: TinyInstances) -> None:
    """They ask for the classes of all pixels, which nobody knows."""
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.DATASETS.TRAIN = (NAME,)
    cfg.INPUT.MIN_SIZE_TRAIN = (40,)
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = [20, 30]
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.5
    sample = PanopticDatasetMapper(cfg, True)(get_records(NAME)[0])
    assert sample["image"].shape == (3, 20, 30)
    assert sample["instances"].gt_masks.tensor.shape[1:] == (20, 30)


def test_the_registered_name_of_ade20k(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = TinyInstances(tmp_path / "tiny")
    root = tmp_path / "ADEChallengeData2016"
    (root / "images").mkdir(parents=True)
    data.images.rename(root / "images" / "training")
    data.json.rename(root / "ade20k_instance_train.json")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert len(get_records("ade20k_instance_train")) == 2
    assert {"ade20k_instance_train", "ade20k_instance_val"} <= set(DatasetCatalog.list())
    assert MetadataCatalog.get("ade20k_instance_train").evaluator_type == "coco"


@pytest.mark.parametrize(
    ("module", "advice"),
    [
        ("cityscapesscripts.helpers", "pip install cityscapesScripts"),
        ("lvis", "pip install lvis"),
        ("deeplearning.projects", "cityscapes_panoptic_train"),
    ],
)
def test_a_module_that_a_reader_of_detectron2_lacks_is_named(module: str, advice: str) -> None:
    def reader() -> list[dict[str, Any]]:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    DatasetCatalog.register("theirs", reader)
    MetadataCatalog.get("theirs").set(evaluator_type="lvis", thing_classes=["cup"])
    with pytest.raises(DatasetError, match=rf"asks for the module '{module}': .*{advice}"):
        get_records("theirs")
