"""None"""

import copy
import os
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from panoptic_ext.data import PanopticDatasetMapper
from panoptic_ext.data.augmentation import PadToDivisor, PadToSize
from panoptic_ext.data.coco.label_png import write_id_map
from panoptic_ext.data.resizing import ResizeShortestEdge
from panoptic_ext.errors import ConfigError, DatasetError
from tests.tiny.mapper import mapper
from tests.tiny.panoptic_dataset import CROWD, HEIGHT, WIDTH, TinyDataset


def many_segments(tiny: TinyDataset, count: int) -> dict[str, Any]:
    """A record of image 1 with `count` segments of huge ids, one pixel or more each."""
    rng = np.random.default_rng(count)
    values = rng.choice(np.arange(2**24 - 2000, 2**24), size=count, replace=False)
    ids = rng.permutation(np.resize(np.append(values, 0), HEIGHT * WIDTH)).reshape(HEIGHT, WIDTH)
    write_id_map(tiny.pngs / "1.png", ids)
    tiny.info["annotations"][0]["segments_info"] = [
        {
            "id": int(i),
            "category_id": (7, 3, 11)[n % 3],
            "iscrowd": int(n % 7 == 1),
            "area": int((ids == i).sum()),
        }
        for n, i in enumerate(values)
    ]
    record = tiny.save().load()[0]
    record["pan_seg"] = ids
    return record


def naive(record: dict[str, Any], augmentations: list[Any]) -> dict[str, Any]:
    """Ground truth with one full-size mask for each segment, as Detectron2's peers make it."""
    image = np.asarray(Image.open(record["file_name"]))[:, :, ::-1]
    aug_input = T.AugInput(image)
    transforms = T.AugmentationList(augmentations)(aug_input)
    rows = []
    for segment in record["segments_info"]:
        mask = (record["pan_seg"] == segment["id"]).astype(np.uint8)
        mask = transforms.apply_segmentation(mask)
        if mask.any():
            rows.append((segment, torch.from_numpy(mask.astype(bool))))
    size = aug_input.image.shape[:2]
    sem_seg = torch.full(size, 255)
    ids = torch.zeros(size, dtype=torch.int32)
    for number, (segment, mask) in enumerate(rows):
        sem_seg[mask] = segment["category_id"]
        ids[mask] = number + 1
    things = [(s, m) for s, m in rows if s["isthing"] and not s["iscrowd"]]
    masks = torch.stack([m for _, m in things]) if things else torch.zeros(0, *size).bool()
    return {
        "image": torch.from_numpy(aug_input.image.transpose(2, 0, 1).copy()),
        "sem_seg": sem_seg,
        "panoptic_ids": ids,
        "table": [(s["category_id"], s["isthing"], bool(s["iscrowd"])) for s, _ in rows],
        "classes": [s["category_id"] for s, _ in things],
        "masks": BitMasks(masks),
    }


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for key in ("image", "sem_seg", "panoptic_ids"):
        assert found[key].dtype == expected[key].dtype, key
        assert torch.equal(found[key], expected[key]), key
    rows = found["segments"]
    columns = (rows.gt_classes, rows.gt_isthing, rows.gt_iscrowd)
    assert list(zip(*(c.tolist() for c in columns), strict=True)) == expected["table"]
    instances = found["instances"]
    assert instances.gt_classes.tolist() == expected["classes"]
    assert torch.equal(instances.gt_masks.tensor, expected["masks"].tensor)
    boxes = expected["masks"].get_bounding_boxes()
    assert torch.equal(instances.gt_boxes.tensor, boxes.tensor)


@pytest.mark.parametrize("count", [1, 14, 254, 255, 256, 700])
@pytest.mark.parametrize("flip", [False, True])
def test_equal_to_one_mask_per_segment(tiny: TinyDataset, count: int, flip: bool) -> None:
    record = many_segments(tiny, count)
    steps = [T.Resize((37, 53)), T.RandomFlip(float(flip)), T.CropTransform(5, 7, 30, 20)]
    assert_same(mapper(*steps)(record), naive(record, steps))


@given(seed=st.integers(0, 2**32 - 1), low=st.floats(0.2, 1.0))
@settings(
    deadline=None,
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_equal_under_random_augmentation(tiny: TinyDataset, seed: int, low: float) -> None:
    record = many_segments(tiny, 20)
    steps = [
        T.ResizeScale(low, 2.0, 40, 40),
        T.FixedSizeCrop((40, 40), pad=False),
        T.RandomFlip(0.5),
        PadToSize(40, 40, (1, 2, 3)),
    ]
    np.random.seed(seed)
    found = mapper(*steps)(record)
    np.random.seed(seed)
    assert_same(found, naive(record, steps))
    assert found["image"].shape == (3, 40, 40)


def test_same_seed_same_sample(tiny: TinyDataset) -> None:
    record, steps = tiny.load()[1], (T.ResizeScale(0.5, 2.0, 40, 40), T.RandomFlip(0.5))
    out = []
    for _ in range(2):
        np.random.seed(3)
        out.append(mapper(*steps)(record))
    assert torch.equal(out[0]["image"], out[1]["image"])
    assert torch.equal(out[0]["panoptic_ids"], out[1]["panoptic_ids"])


def test_record_is_left_unchanged(tiny: TinyDataset) -> None:
    record = tiny.load()[1]
    before = copy.deepcopy(record)
    mapper(T.RandomFlip(1.0))(record)
    assert record == before


def test_crowd_is_no_instance_but_has_its_class(tiny: TinyDataset) -> None:
    found = mapper()(tiny.load()[1])
    assert found["instances"].gt_classes.tolist() == [1]
    assert found["segments"].gt_iscrowd.tolist() == [False, False, True]
    crowd = torch.from_numpy(tiny.maps[1] == CROWD)
    assert (found["sem_seg"][crowd] == 2).all()
    assert (found["sem_seg"][torch.from_numpy(tiny.maps[1] == 0)] == 255).all()


def test_nothing_left_after_cropping(tiny: TinyDataset) -> None:
    found = mapper(T.CropTransform(0, 0, 6, 3))(tiny.load()[0])
    assert (len(found["segments"]), len(found["instances"])) == (0, 0)
    assert not found["panoptic_ids"].any()
    assert (found["sem_seg"] == 255).all()
    assert found["instances"].gt_masks.crop_and_resize(torch.zeros(0, 4), 7).shape == (0, 7, 7)
    assert found["instances"].gt_boxes.tensor.shape == (0, 4)


def test_padding_is_mean_pixel_and_void(tiny: TinyDataset) -> None:
    found = mapper(PadToDivisor(20, (103.53, 116.28, 123.675)))(tiny.load()[0])
    assert found["image"].shape == (3, 40, 40)
    assert found["image"][:, HEIGHT:].float().mean((1, 2)).tolist() == [104, 116, 124]
    assert not found["panoptic_ids"][HEIGHT:].any()
    assert not found["panoptic_ids"][:, WIDTH:].any()
    assert (found["sem_seg"][:, WIDTH:] == 255).all()


def test_height_and_width_are_the_files(tiny: TinyDataset) -> None:
    found = mapper(T.Resize((48, 64)))(tiny.load()[0])
    assert (found["height"], found["width"]) == (HEIGHT, WIDTH)
    assert found["image"].shape == (3, 48, 64)
    assert found["segments"].image_size == (48, 64)


def test_test_mode_reads_no_ground_truth(tiny: TinyDataset) -> None:
    record = tiny.load()[0]
    os.remove(record["pan_seg_file_name"])
    found = mapper(T.Resize((48, 64)), is_train=False)(record)
    assert set(found) == {"file_name", "image_id", "height", "width", "image"}
    assert found["image"].shape == (3, 48, 64)


def test_targets_can_be_left_out(tiny: TinyDataset) -> None:
    found = mapper(targets=())(tiny.load()[0])
    assert "panoptic_ids" in found
    assert not {"instances", "sem_seg"} & set(found)
    with pytest.raises(ConfigError, match="did you mean 'sem_seg'"):
        mapper(targets=("semseg",))


@pytest.mark.parametrize("ignore_label", [250, 65, 1000])
def test_ignore_label(tiny: TinyDataset, ignore_label: int) -> None:
    found = mapper(ignore_label=ignore_label)(tiny.load()[0])
    assert (found["sem_seg"][found["panoptic_ids"] == 0] == ignore_label).all()


def test_category_limited_crop_sees_categories(tiny: TinyDataset) -> None:
    seen = []

    class Look(T.Augmentation):
        def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> T.Transform:
            seen.append(sem_seg)
            return T.NoOpTransform()

    mapper(Look())(tiny.load()[0])
    assert set(np.unique(seen[0]).tolist()) == {0, 1, 255}


def test_an_image_of_void_alone_has_no_segment(tiny: TinyDataset) -> None:
    record = tiny.load()[0]
    write_id_map(record["pan_seg_file_name"], np.zeros((HEIGHT, WIDTH), int))
    found = mapper()({**record, "segments_info": []})
    assert (len(found["segments"]), len(found["instances"])) == (0, 0)


@pytest.mark.parametrize("extension", ["png", "tif"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_images_are_turned_by_their_exif_tag(
    tiny: TinyDataset, orientation: int, extension: str
) -> None:
    stored = np.asarray(Image.open(tiny.images / "1.png"))
    turned = np.rot90(stored, {3: 2, 6: -1}[orientation])
    tags = Image.Exif()
    tags[274] = orientation
    path = str(tiny.images / f"turned.{extension}")
    Image.fromarray(stored).save(path, exif=tags)
    record = {**tiny.load()[0], "file_name": path}
    record["height"], record["width"] = turned.shape[:2]
    write_id_map(record["pan_seg_file_name"], np.rot90(tiny.maps[0], {3: 2, 6: -1}[orientation]))
    image = mapper()(record)["image"].permute(1, 2, 0).numpy()
    assert np.array_equal(image[:, :, ::-1], turned)


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "L", "P"])
def test_image_modes_become_three_channels(tiny: TinyDataset, mode: str) -> None:
    path = str(tiny.images / "1.tiff")
    Image.open(tiny.images / "1.png").convert(mode).save(path)
    assert mapper()({**tiny.load()[0], "file_name": path})["image"].shape == (3, HEIGHT, WIDTH)


@pytest.mark.parametrize("is_train", [False, True])
@pytest.mark.parametrize("size", [(1, 3000), (3000, 1)])
def test_very_long_images_keep_a_pixel(
    tiny: TinyDataset, size: tuple[int, int], is_train: bool
) -> None:
    record = {**tiny.load()[0], "file_name": str(tiny.images / "long.png"), "segments_info": []}
    record["height"], record["width"] = size
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(record["file_name"])
    write_id_map(record["pan_seg_file_name"], np.zeros(size, int))
    sample = mapper(ResizeShortestEdge((800,), 1333, "choice"), is_train=is_train)(record)
    assert sorted(sample["image"].shape) == [1, 3, 1333]


def test_nothing_left_of_an_image(tiny: TinyDataset) -> None:
    record = tiny.load()[0]
    with pytest.raises(DatasetError, match=r"image id 1: .* 24 x 32 .* no pixel left"):
        mapper(T.RandomCrop("relative", (0.001, 0.5)))(record)


def test_boxes_travel_with_the_masks(tiny: TinyDataset) -> None:
    masks = mapper(T.RandomFlip(1.0))(many_segments(tiny, 40))["instances"].gt_masks
    expected = BitMasks(masks.tensor).get_bounding_boxes().tensor
    assert torch.equal(masks.boxes.float(), expected)


def test_unknown_image_format(tiny: TinyDataset) -> None:
    with pytest.raises(ConfigError, match=r"unknown INPUT\.FORMAT 'BRG'.*known: "):
        PanopticDatasetMapper(True, augmentations=[], image_format="BRG")


# The published panoptic mappers keep what a crop has left without pixels.
def test_segments_without_pixels_are_kept_only_where_asked_for(tiny: TinyDataset) -> None:
    record, cut = tiny.load()[1], T.CropTransform(0, 0, 6, 10)  # of road and car, no crowd
    dropped, kept = mapper(cut)(record), mapper(cut, keep_empty=True)(record)
    assert dropped["segments"].gt_classes.tolist() == [0, 1]
    assert kept["segments"].gt_classes.tolist() == [0, 1, 2]
    assert kept["panoptic_ids"].unique().tolist() == [0, 1, 2]
    nothing = mapper(T.CropTransform(0, 0, 6, 3), keep_empty=True)(record)
    assert (len(nothing["segments"]), len(nothing["instances"])) == (3, 0)


def test_a_segment_that_the_label_map_lacks_is_never_kept(tiny: TinyDataset) -> None:
    record = tiny.load()[0]
    classes = [s["category_id"] for s in record["segments_info"]]
    extra = {"id": 77, "category_id": 2, "isthing": True, "iscrowd": 0, "area": 1}
    found = mapper(keep_empty=True)({**record, "segments_info": [extra, *record["segments_info"]]})
    assert found["segments"].gt_classes.tolist() == classes


class _Crops(T.Augmentation):
    """Crops of 3 x 2 pixels, one place (first column, first row) after the other."""

    def __init__(self, *places: tuple[int, int]) -> None:
        self.places = list(places)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return T.CropTransform(*self.places.pop(0), 3, 2)


_ON_VOID, _ON_ROAD, _ON_CAR, _ON_CROWD = (20, 0), (16, 6), (5, 6), (24, 12)


@pytest.mark.parametrize(
    ("options", "drawn"),
    [
        ({}, 1),
        ({"redraw_empty": 1}, 2),
        ({"redraw_empty": 9}, 3),
        ({"redraw_empty": 3, "things_alone": True}, 4),
        ({"redraw_empty": 9, "things_alone": True}, 5),
    ],
)
def test_a_crop_with_nothing_to_learn_is_drawn_again(
    tiny: TinyDataset, options: dict[str, int], drawn: int
) -> None:
    places = [_ON_VOID, _ON_CROWD, _ON_ROAD, _ON_CROWD, _ON_CAR, _ON_VOID]
    crops = _Crops(*places)
    sample = mapper(crops, **options)(tiny.load()[1])
    assert crops.places == places[drawn:]
    expected = {_ON_VOID: [], _ON_ROAD: [0], _ON_CAR: [1], _ON_CROWD: [2]}[places[drawn - 1]]
    assert sample["segments"].gt_classes.tolist() == expected
