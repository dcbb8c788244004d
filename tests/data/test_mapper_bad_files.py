"""Files that the mapper cannot use: one clear error each, or skipped where that is asked for."""

import logging
import os
from typing import Any

import numpy as np
import pytest
from PIL import Image

from panoptic_ext.data.coco.label_png import write_id_map
from panoptic_ext.errors import DatasetError, UnreadableFileError
from tests.tiny.mapper import mapper
from tests.tiny.panoptic_dataset import CAR, CROWD, HEIGHT, WIDTH, TinyDataset


def test_a_truncated_image_is_refused(tiny: TinyDataset) -> None:
    record = tiny.load()[0]
    os.truncate(record["file_name"], os.path.getsize(record["file_name"]) // 2)
    with pytest.raises(DatasetError, match=r"image id 1: image .*1\.png cannot be read"):
        mapper()(record)


def test_a_missing_image_is_named(tiny: TinyDataset) -> None:
    record = tiny.load()[0]
    os.remove(record["file_name"])
    with pytest.raises(DatasetError, match=r"image id 1: image .*1\.png does not exist"):
        mapper()(record)


def test_a_missing_label_map_is_named(tiny: TinyDataset) -> None:
    record = tiny.load()[0]
    os.remove(record["pan_seg_file_name"])
    with pytest.raises(DatasetError, match=r"image id 1: label map .*1\.png does not exist"):
        mapper()(record)


@pytest.mark.parametrize("mode", ["L", "P"])
def test_a_grey_or_palette_label_map_is_refused(tiny: TinyDataset, mode: str) -> None:
    record = tiny.load()[0]
    Image.open(record["pan_seg_file_name"]).convert(mode).save(record["pan_seg_file_name"])
    with pytest.raises(DatasetError, match=r"image id 1: label map .* PNG, expected RGB"):
        mapper()(record)


def test_a_jpeg_label_map_is_refused(tiny: TinyDataset) -> None:
    record = tiny.load()[0]
    Image.open(record["pan_seg_file_name"]).save(record["pan_seg_file_name"], format="JPEG")
    with pytest.raises(DatasetError, match=r"image id 1: label map .* is a JPEG file"):
        mapper()(record)


def test_other_sizes_than_the_json_says_are_refused(tiny: TinyDataset) -> None:
    record = tiny.load()[0]
    with pytest.raises(DatasetError, match=r"is 24 x 32 .* the JSON says 24 x 33"):
        mapper()({**record, "width": 33})
    write_id_map(record["pan_seg_file_name"], tiny.maps[0][1:])
    with pytest.raises(DatasetError, match=r"label map .* is 23 x 32 .* is 24 x 32"):
        mapper()(record)


def test_ids_that_only_the_png_has_are_refused(tiny: TinyDataset) -> None:
    record = tiny.load()[1]
    record["segments_info"] = [s for s in record["segments_info"] if s["id"] not in (CAR, CROWD)]
    with pytest.raises(DatasetError, match=f"image id 2: .* has the ids {CAR}, {CROWD}, which"):
        mapper()(record)


def test_a_segment_that_only_the_json_has_is_dropped_with_a_warning(
    tiny: TinyDataset, caplog: pytest.LogCaptureFixture
) -> None:
    record = tiny.load()[0]
    record["segments_info"].insert(
        0, {"id": 77, "category_id": 2, "isthing": True, "iscrowd": 0, "area": 1}
    )
    with caplog.at_level(logging.WARNING):
        found = mapper()(record)
    assert found["segments"].gt_classes.tolist() == [0, 1]
    assert "segments 77 are not in the label map" in caplog.text


def test_an_exif_turn_that_contradicts_the_json_is_refused(tiny: TinyDataset) -> None:
    tags = Image.Exif()
    tags[274] = 6
    path = str(tiny.images / "1.jpg")
    Image.open(tiny.images / "1.png").save(path, exif=tags)
    with pytest.raises(DatasetError, match=r"32 x 24 .* 24 x 32; its EXIF tag turns it"):
        mapper()({**tiny.load()[0], "file_name": path})


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("is_train", [False, True])
def test_16_bit_and_float_images_are_refused_and_never_skipped(
    tiny: TinyDataset, dtype: Any, is_train: bool
) -> None:
    path = str(tiny.images / "deep.tif")
    ramp = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    Image.fromarray(ramp.astype(dtype)).save(path)
    for skip in (False, True):
        with pytest.raises(DatasetError, match=r"image id 1: .*convert to 8 bit") as caught:
            mapper(is_train=is_train, skip_corrupt=skip)({**tiny.load()[0], "file_name": path})
        assert not isinstance(caught.value, UnreadableFileError)


def spoil_file(tiny: TinyDataset, record: dict[str, Any], what: str) -> None:
    paths = {"image": record["file_name"], "label map": record["pan_seg_file_name"]}
    state, name = what.split(" ", 1)
    if state == "missing":
        os.remove(paths[name])
    elif state == "truncated":
        os.truncate(paths[name], os.path.getsize(paths[name]) // 2)
    else:
        open(paths[name], "w").close()


@pytest.mark.parametrize("state", ["missing", "truncated", "empty"])
@pytest.mark.parametrize("what", ["image", "label map"])
def test_unreadable_files_can_be_skipped(tiny: TinyDataset, state: str, what: str) -> None:
    record = tiny.load()[0]
    spoil_file(tiny, record, f"{state} {what}")
    assert mapper(skip_corrupt=True)(record) is None
    with pytest.raises(UnreadableFileError, match=f"image id 1: {what} "):
        mapper()(record)


def test_wrong_labels_are_never_skipped(tiny: TinyDataset) -> None:
    careful = mapper(skip_corrupt=True)
    one, two = tiny.load()
    with pytest.raises(DatasetError, match="which are not in the JSON's segments_info"):
        careful({**one, "segments_info": []})
    with pytest.raises(DatasetError, match="the JSON says 24 x 33"):
        careful({**one, "width": 33})
    Image.open(two["pan_seg_file_name"]).convert("L").save(two["pan_seg_file_name"])
    with pytest.raises(DatasetError, match="grayscale PNG, expected RGB"):
        careful(two)


def test_skipping_corrupt_samples_is_an_option(
    tiny: TinyDataset, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = tiny.load()
    os.truncate(bad["file_name"], 20)
    careful = mapper(skip_corrupt=True)
    with caplog.at_level(logging.WARNING):
        assert careful(bad) is None
        assert careful(bad) is None
    assert caplog.text.count("skipped a sample: image id 2") == 1
    assert careful(good) is not None
