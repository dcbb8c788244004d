"""Registration and loading of well-formed data."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from panoptic_ext.data import (
    Category,
    PanopticSource,
    check_panoptic,
    check_same_categories,
    filter_empty,
    get_metadata,
    get_records,
    load_panoptic,
    num_classes,
    register_panoptic,
    thing_ids,
)
from panoptic_ext.data.coco.divisor import segments_of_png
from panoptic_ext.data.coco.label_png import write_id_map
from panoptic_ext.errors import DatasetError
from tests.tiny.panoptic_dataset import CAR, CROWD, HEIGHT, ROAD, WIDTH, TinyDataset


def test_registration_reads_nothing() -> None:
    register_panoptic("nowhere", "/nowhere/a.json", "/nowhere/i", "/nowhere/p")
    assert "nowhere" in DatasetCatalog
    metadata = MetadataCatalog.get("nowhere")
    assert metadata.label_divisor == 1000
    assert metadata.panoptic_json == "/nowhere/a.json"
    with pytest.raises(DatasetError, match=r"/nowhere/a\.json does not exist"):
        DatasetCatalog.get("nowhere")
    with pytest.raises(DatasetError, match=r"/nowhere/a\.json does not exist"):
        _ = metadata.thing_classes


def test_records(tiny: TinyDataset) -> None:
    record = tiny.load()[1]
    segments = record.pop("segments_info")
    assert record == {
        "file_name": str(tiny.images / "2.png"),
        "image_id": 2,
        "height": HEIGHT,
        "width": WIDTH,
        "pan_seg_file_name": str(tiny.pngs / "2.png"),
        "pan_seg_encoding": "rgb",
    }
    assert [(s["id"], s["category_id"], s["isthing"], s["iscrowd"]) for s in segments] == [
        (ROAD, 0, False, 0),
        (CAR, 1, True, 0),
        (CROWD, 2, True, 1),
    ]


def test_records_are_new_each_time(tiny: TinyDataset) -> None:
    register_panoptic("tiny", *tiny.paths())
    DatasetCatalog.get("tiny")[0]["segments_info"][0]["category_id"] = 99
    assert DatasetCatalog.get("tiny")[0]["segments_info"][0]["category_id"] == 0


def test_metadata_without_loading_records(tiny: TinyDataset) -> None:
    register_panoptic("tiny", *tiny.paths())
    metadata = MetadataCatalog.get("tiny")
    assert metadata.thing_classes == metadata.stuff_classes == ["road", "car", "person"]
    assert metadata.thing_colors == [[10, 20, 30], [200, 0, 0], [0, 200, 0]]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 1, 11: 2}
    assert metadata.stuff_dataset_id_to_contiguous_id == {7: 0}
    assert metadata.isthing == (False, True, True)
    assert metadata.panoptic_root == str(tiny.pngs)
    assert (num_classes("tiny"), thing_ids("tiny")) == (3, (1, 2))


def test_metadata_behaves_as_detectron2s(tiny: TinyDataset) -> None:
    register_panoptic("tiny", *tiny.paths())
    metadata = MetadataCatalog.get("tiny")
    assert not hasattr(metadata, "keypoint_names")
    assert metadata.get("keypoint_names") is None
    assert "thing_classes" not in vars(metadata)  # asking for others reads nothing
    assert metadata.get("thing_classes") == ["road", "car", "person"]
    assert metadata.as_dict()["panoptic_json"] == str(tiny.json)
    metadata.set(json_file="instances.json")
    with pytest.raises(AssertionError, match="cannot be set"):
        metadata.thing_classes = ["other"]
    for twin in (copy.deepcopy(metadata), pickle.loads(pickle.dumps(metadata))):
        assert twin.as_dict() == metadata.as_dict()
        assert twin.isthing == metadata.isthing


def test_as_dict_reads_what_is_missing(tiny: TinyDataset) -> None:
    register_panoptic("tiny", *tiny.paths())
    assert MetadataCatalog.get("tiny").as_dict()["isthing"] == (False, True, True)


def test_detectron2_evaluator_and_visualizer_take_it(tiny: TinyDataset) -> None:
    register_panoptic("tiny", *tiny.paths())
    evaluator = COCOPanopticEvaluator("tiny")
    assert evaluator._thing_contiguous_id_to_dataset_id == {1: 3, 2: 11}
    record = DatasetCatalog.get("tiny")[1]
    record["pan_seg"] = tiny.maps[1]
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    drawn = Visualizer(image, MetadataCatalog.get("tiny")).draw_dataset_dict(record)
    assert drawn.get_image().any()


def test_colours_are_made_up_where_missing(tiny: TinyDataset) -> None:
    for category in tiny.info["categories"]:
        del category["color"]
    tiny.save()
    register_panoptic("tiny", *tiny.paths())
    colors = MetadataCatalog.get("tiny").thing_colors
    assert len({tuple(c) for c in colors}) == 3


def test_registering_the_same_twice(tiny: TinyDataset) -> None:
    register_panoptic("tiny", *tiny.paths())
    first = MetadataCatalog.get("tiny")
    register_panoptic("tiny", *tiny.paths())
    assert MetadataCatalog.get("tiny") is first


def test_other_content_under_a_taken_name_is_refused(tiny: TinyDataset) -> None:
    register_panoptic("tiny", *tiny.paths())
    with pytest.raises(DatasetError, match="ignore_label is 255 there, 250 here"):
        register_panoptic("tiny", *tiny.paths(), ignore_label=250)
    DatasetCatalog.register("foreign", list)
    with pytest.raises(DatasetError, match="'foreign' is taken by another registration"):
        register_panoptic("foreign", *tiny.paths())


def test_an_unregistered_name_is_refused_with_the_nearest(tiny: TinyDataset) -> None:
    register_panoptic("tiny_panoptic_train", *tiny.paths())
    for function in (get_records, get_metadata, num_classes):
        with pytest.raises(DatasetError, match="did you mean 'tiny_panoptic_train'"):
            function("tiny_panoptic_trian")


def test_data_sets_of_other_categories_are_refused_together(
    tiny: TinyDataset, tmp_path: Path
) -> None:
    other = TinyDataset(tmp_path / "other")
    register_panoptic("one", *tiny.paths())
    register_panoptic("same", *other.paths())
    check_same_categories(["one", "same"])
    other.info["categories"][1]["name"] = "lorry"
    other.save()
    register_panoptic("two", *other.paths(), ignore_label=250)
    with pytest.raises(DatasetError, match=r"class 1 is 'car' .* in 'one', 'lorry'"):
        check_same_categories(["one", "two"])


def test_an_ignore_label_within_the_classes_is_refused(tiny: TinyDataset) -> None:
    register_panoptic("tiny", *tiny.paths(), ignore_label=2)
    with pytest.raises(DatasetError, match=r"ignore_label 2 lies inside the class range 0\.\.2"):
        num_classes("tiny")


@pytest.mark.parametrize("extension", [".jpg", ".JPEG", ".bmp", ".tiff"])
def test_any_image_extension(tiny: TinyDataset, extension: str) -> None:
    Image.open(tiny.images / "1.png").save(tiny.images / f"1{extension}")
    os.remove(tiny.images / "1.png")
    assert tiny.load()[0]["file_name"] == str(tiny.images / f"1{extension}")


def test_string_ids_and_sub_folders_with_equal_names(tiny: TinyDataset) -> None:
    """Equal base names in different folders stay apart."""
    for number, folder in ((1, "day"), (2, "night")):
        (tiny.images / folder).mkdir()
        os.rename(tiny.images / f"{number}.png", tiny.images / folder / "x.png")
        entry = tiny.info["images"][number - 1]
        entry.update(id=f"{folder}-x", file_name=f"{folder}/x.png")
        tiny.info["annotations"][number - 1]["image_id"] = f"{folder}-x"
    tiny.info["annotations"].reverse()
    records = tiny.save().load()
    assert [r["image_id"] for r in records] == ["night-x", "day-x"]
    assert [Path(r["file_name"]).parent.name for r in records] == ["night", "day"]


def test_a_label_map_is_not_taken_for_its_image(tiny: TinyDataset) -> None:
    for number in (1, 2):
        Image.open(tiny.images / f"{number}.png").save(tiny.pngs / f"{number}.jpg")
        tiny.info["images"][number - 1]["file_name"] = f"{number}.jpg"
    tiny.save()
    link = tiny.root / "link"
    link.symlink_to(tiny.pngs)
    for images in (tiny.pngs, link):
        paths = str(tiny.json), str(images), str(tiny.pngs)
        assert [Path(r["file_name"]).name for r in load_panoptic(*paths)] == ["1.jpg", "2.jpg"]
    os.remove(tiny.pngs / "1.jpg")
    for images in (tiny.pngs, link):
        paths = str(tiny.json), str(images), str(tiny.pngs)
        with pytest.raises(DatasetError, match=r"no image .*1\.jpg.*label map does not count"):
            load_panoptic(*paths)
        found = check_panoptic(PanopticSource(*paths))
        assert [(p.kind, p.where) for p in found] == [("missing-image", "image id 1")]


def test_images_without_annotation_are_left_out(tiny: TinyDataset) -> None:
    del tiny.info["annotations"][1]
    assert [r["image_id"] for r in tiny.save().load()] == [1]


def test_void_images_stay_and_can_be_filtered(tiny: TinyDataset) -> None:
    tiny.info["annotations"][0]["segments_info"] = []
    records = tiny.save().load()
    assert len(records) == 2
    assert [r["image_id"] for r in filter_empty(records)] == [2]


def test_divisor_encoding_with_and_without_segments_info(tiny: TinyDataset) -> None:
    renumbered = {ROAD: 7, CAR: 3001, CROWD: 11}
    for number, ids in enumerate(tiny.maps):
        out = np.zeros_like(ids)
        for old, new in renumbered.items():
            out[ids == old] = new
        write_id_map(tiny.pngs / f"{number + 1}.png", out, "divisor")
        for segment in tiny.info["annotations"][number]["segments_info"]:
            segment["id"] = renumbered[segment["id"]]
    explicit = tiny.save().load(encoding="divisor")
    for annotation in tiny.info["annotations"]:
        del annotation["segments_info"]
    derived = tiny.save().load(encoding="divisor")
    for one, other in zip(explicit, derived, strict=True):
        assert sorted(one["segments_info"], key=lambda s: s["id"]) == sorted(
            other["segments_info"], key=lambda s: s["id"]
        )


@pytest.mark.parametrize("given", [False, True])
def test_divisor_encoding_cannot_hold_category_0(tiny: TinyDataset, given: bool) -> None:
    classes = [(0, "a", True, (1, 1, 1)), (3, "b", False, (2, 2, 2))]
    write_id_map(tiny.pngs / "1.png", np.full((HEIGHT, WIDTH), 3), "divisor")
    for annotation in tiny.info["annotations"]:
        del annotation["segments_info"]
    tiny.info["categories"][0]["id"] = 0
    options = {"classes": tuple(Category(*c) for c in classes)} if given else {}
    problems = check_panoptic(tiny.save().source(encoding="divisor", **options), pixels=False)
    assert [p.kind for p in problems] == ["divisor-category-0"]
    with pytest.raises(DatasetError, match="category has id 0"):
        tiny.load(encoding="divisor", **options)
    with pytest.raises(DatasetError, match=r"1\.png: a category has id 0"):
        segments_of_png(str(tiny.pngs / "1.png"), 1000, {0: (0, True), 3: (1, False)})
    for annotation in tiny.info["annotations"]:
        annotation["segments_info"] = [{"id": 3, "category_id": 0, "iscrowd": 0, "area": 1}]
    assert tiny.save().load(encoding="divisor", **options)[0]["segments_info"][0]["id"] == 3


def test_divisor_encoding_of_an_unknown_category(tiny: TinyDataset) -> None:
    del tiny.info["annotations"][0]["segments_info"]
    write_id_map(tiny.pngs / "1.png", np.full((HEIGHT, WIDTH), 5002), "divisor")
    with pytest.raises(DatasetError, match="value 5002 is of category 5"):
        tiny.save().load(encoding="divisor")


def test_given_classes_take_the_place_of_the_json(tiny: TinyDataset) -> None:
    classes = [(11, "a", True, (1, 1, 1)), (3, "b", False, (2, 2, 2)), (7, "c", False, (3, 3, 3))]
    del tiny.info["categories"]
    record = tiny.save().load(classes=classes)[1]
    assert [s["category_id"] for s in record["segments_info"]] == [2, 1, 0]
