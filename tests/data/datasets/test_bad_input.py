"""Bad input of spec/robustness.md: each gets one clear error from the loader and from the check."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from panoptic_ext.data import PanopticDatasetMapper
from panoptic_ext.data.coco.label_png import write_id_map
from panoptic_ext.data.datasets.check import check_panoptic
from panoptic_ext.errors import DatasetError
from tests.data.tiny import CAR, HEIGHT, ROAD, WIDTH, TinyDataset

Spoil = Callable[[TinyDataset], Any]


def case(number: str, kind: str, text: str, spoil: Spoil) -> Any:
    return pytest.param(kind, text, spoil, id=f"robustness_{number}")


def image_id(tiny: TinyDataset) -> None:
    tiny.info["images"][1]["id"] = 1
    tiny.info["annotations"][1]["image_id"] = 1


def instances_json(tiny: TinyDataset) -> None:
    tiny.info["annotations"] = [{"id": 1, "image_id": 1, "segmentation": [[0, 0, 1, 1, 2, 0]]}]


def set_in(key: str, value: Any) -> Spoil:
    return lambda tiny: tiny.segment.update({key: value})


def drop(key: str) -> Spoil:
    return lambda tiny: tiny.segment.pop(key)


def category(index: int, **values: Any) -> Spoil:
    return lambda tiny: tiny.info["categories"][index].update(values)


def annotation(**values: Any) -> Spoil:
    return lambda tiny: tiny.info["annotations"][0].update(values)


STRUCTURE = [
    case("2_images", "missing-key", "no list 'images'", lambda t: t.info.pop("images")),
    case("2_annotations", "missing-key", "'annotations'", lambda t: t.info.pop("annotations")),
    case("2_categories", "missing-key", "'categories'", lambda t: t.info.pop("categories")),
    case("3", "instances-json", "expected a panoptic one", instances_json),
    case("4", "no-annotations", "empty", lambda t: t.info["annotations"].clear()),
    case("5", "duplicate-image-id", "'1' occurs 2 times", image_id),
    case("6_id", "duplicate-category", "id '7' occurs 2 times", category(1, id=7)),
    case("6_name", "duplicate-category", "name 'road' occurs 2", category(1, name="road")),
    case("7_missing", "bad-isthing", "no 'isthing'",
         lambda t: t.info["categories"][1].pop("isthing")),
    case("7_value", "bad-isthing", "2, expected isthing 0 or 1", category(1, isthing=2)),
    case("2_null", "bad-annotation", "annotation None",
         lambda t: t.info["annotations"].insert(0, None)),
    case("8_list", "unknown-category", "is not in categories", set_in("category_id", [1])),
    case("8_true", "unknown-category", "True is not in", set_in("category_id", True)),
    case("8_id_list", "bad-category", "no integer 'id'", category(0, id=[1])),
    case("12_inf", "bad-area", "area is inf", set_in("area", float("inf"))),
    case("12_crowd", "bad-iscrowd", "iscrowd is '0'", set_in("iscrowd", "0")),
    case("8", "unknown-category", "category_id 4 is not in categories", set_in("category_id", 4)),
    case("9", "segment-id-0", "0 is void", set_in("id", 0)),
    case("10_negative", "segment-id-range", "from 1 to 16777215", set_in("id", -4)),
    case("10_large", "segment-id-range", "from 1 to 16777215", set_in("id", 2**24)),
    case("10_text", "segment-id-range", "from 1 to 16777215", set_in("id", "5")),
    case("11", "duplicate-segment", "id '5' occurs 2 times", set_in("id", CAR)),
    case("12_area", "bad-area", "no 'area'", drop("area")),
    case("12_iscrowd", "bad-iscrowd", "no 'iscrowd'", drop("iscrowd")),
    case("14", "no-image-entry", "without an entry in images", annotation(image_id=9)),
    case("15_absolute", "unsafe-name", "'/etc/1.png'", annotation(file_name="/etc/1.png")),
    case("15_dots", "unsafe-name", "'../1.png'", annotation(file_name="../1.png")),
    case("15_image", "unsafe-name", "'a/../../1.png'",
         lambda t: t.info["images"][0].update(file_name="a/../../1.png")),
    case("27_zero_size", "bad-size", "0, 32, expected positive",
         lambda t: t.info["images"][0].update(height=0)),
    case("no_segments_info", "no-segments-info", "None", annotation(segments_info=None)),
    case("same_png_twice", "duplicate-png", "'2.png' occurs 2", annotation(file_name="2.png")),
    case("16", "missing-image", "nor one of that name", lambda t: os.remove(t.images / "2.png")),
    case("17", "missing-png", "no label map", lambda t: os.remove(t.pngs / "2.png")),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "spoil"), STRUCTURE)
def test_loader_and_check_report(tiny: TinyDataset, kind: str, text: str, spoil: Spoil) -> None:
    spoil(tiny)
    tiny.save()
    with pytest.raises(DatasetError) as error:
        tiny.load()
    assert f"[{kind}]" in str(error.value)
    assert text in str(error.value)
    found = [p for p in check_panoptic(tiny.source(), pixels=False) if p.kind == kind]
    assert found
    assert not found[0].warning
    assert text in str(found[0])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        pytest.param(None, "does not exist", id="robustness_1_missing"),
        pytest.param("", "is empty", id="robustness_1_empty"),
        pytest.param('{"images": [', "is not valid JSON", id="robustness_1_cut_off"),
        pytest.param("[1]", "holds a list, expected an object", id="robustness_1_no_object"),
    ],
)
def test_json_that_cannot_be_read(tiny: TinyDataset, content: str | None, text: str) -> None:
    if content is None:
        os.remove(tiny.json)
    else:
        tiny.json.write_text(content)
    with pytest.raises(DatasetError, match=text):
        tiny.load()
    (problem,) = check_panoptic(tiny.source())
    assert text in str(problem)


def test_loader_lists_twenty_and_counts_all(tiny: TinyDataset) -> None:
    segments = [{"id": i, "category_id": 99, "area": 1, "iscrowd": 0} for i in range(1, 31)]
    tiny.info["annotations"][0]["segments_info"] = segments
    with pytest.raises(DatasetError) as error:
        tiny.save().load()
    assert "30 problems, the first 20" in str(error.value)
    assert str(error.value).count("[unknown-category]") == 20


def test_check_reports_all_kinds_at_once(tiny: TinyDataset) -> None:
    tiny.segment["area"] = 3
    tiny.info["annotations"][1]["segments_info"][0]["category_id"] = 99
    os.remove(tiny.pngs / "2.png")
    tiny.save()
    kinds = {p.kind for p in check_panoptic(tiny.source())}
    assert kinds == {"unknown-category", "missing-png", "wrong-area"}


def test_check_of_good_data_finds_nothing(tiny: TinyDataset) -> None:
    assert check_panoptic(tiny.source()) == []


def truncate(path: os.PathLike) -> None:
    size = os.path.getsize(path)
    os.truncate(path, size // 2)


def resave_png(tiny: TinyDataset, mode: str) -> None:
    Image.open(tiny.pngs / "1.png").convert(mode).save(tiny.pngs / "1.png")


def other_id(tiny: TinyDataset) -> None:
    ids = tiny.maps[0].copy()
    ids[20:22] = 4242
    write_id_map(tiny.pngs / "1.png", ids)


def without_car(tiny: TinyDataset) -> None:
    write_id_map(tiny.pngs / "1.png", np.full((HEIGHT, WIDTH), ROAD))


def exif(tiny: TinyDataset, orientation: int = 6, *, upright: bool = False) -> None:
    """Image 1 with an EXIF tag; with `upright` its file is stored the other way round."""
    image = Image.open(tiny.images / "1.png").convert("RGB")
    if upright:
        image = image.transpose(Image.Transpose.ROTATE_90)
    tags = Image.Exif()
    tags[274] = orientation
    os.remove(tiny.images / "1.png")
    image.save(tiny.images / "1.jpg", exif=tags)


def deep(tiny: TinyDataset, mode: str) -> None:
    ramp = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    os.remove(tiny.images / "1.png")
    image = Image.fromarray(ramp.astype(np.uint16 if mode == "I;16" else np.float32))
    image.save(tiny.images / "1.tif")


def jpeg_mask(tiny: TinyDataset) -> None:
    Image.open(tiny.pngs / "1.png").save(tiny.pngs / "1.png", format="JPEG")


def smaller_image(tiny: TinyDataset) -> None:
    Image.open(tiny.images / "1.png").resize((WIDTH - 1, HEIGHT)).save(tiny.images / "1.png")


def smaller_png(tiny: TinyDataset) -> None:
    write_id_map(tiny.pngs / "1.png", tiny.maps[0][1:])


PIXELS = [
    case("13", "wrong-area", "area is 3, expected the number of pixels",
         lambda t: (t.segment.update(area=3), t.save())),
    case("18_image", "damaged-image", "cannot be read", lambda t: truncate(t.images / "1.png")),
    case("18_png", "bad-label-map", "is damaged", lambda t: truncate(t.pngs / "1.png")),
    case("19_gray", "bad-label-map", "grayscale PNG, expected RGB", lambda t: resave_png(t, "L")),
    case("19_palette", "bad-label-map", "palette PNG, expected", lambda t: resave_png(t, "P")),
    case("19_16_bit", "bad-label-map", "16-bit PNG, expected RGB",
         lambda t: write_id_map(t.pngs / "1.png", t.maps[0] % 999, "divisor")),
    case("20", "bad-label-map", "is a JPEG file, expected PNG", jpeg_mask),
    case("21_image", "size-mismatch", "image is 24 x 31 (height x width), the JSON", smaller_image),
    case("21_png", "size-mismatch", "is 23 x 32, the image", smaller_png),
    case("22", "id-not-in-json", "segment id 4242: 64 pixels have this id", other_id),
    case("23", "id-not-in-png", "segment id 5: no pixel has this id", without_car),
    case("26_orientation_6", "exif-rotation", "(orientation 6) turns it to 32 x 24", exif),
    case("26_orientation_3", "exif-rotation", "(orientation 3) turns or mirrors it",
         lambda t: exif(t, 3)),
    case("27_16_bit", "deep-image", "expected 8 bits a channel", lambda t: deep(t, "I;16")),
    case("27_float", "deep-image", "floating point", lambda t: deep(t, "F")),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "spoil"), PIXELS)
def test_check_of_pixels(tiny: TinyDataset, kind: str, text: str, spoil: Spoil) -> None:
    spoil(tiny)
    found = [p for p in check_panoptic(tiny.source()) if p.kind == kind]
    assert found
    assert text in str(found[0])
    assert "image id 1" in found[0].where


@pytest.mark.parametrize("orientation", [5, 6, 8])
def test_robustness_26_annotated_upright_is_fine(tiny: TinyDataset, orientation: int) -> None:
    exif(tiny, orientation, upright=True)
    assert check_panoptic(tiny.source()) == []
    assert PanopticDatasetMapper(True, augmentations=[], image_format="RGB")(tiny.load()[0])


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_robustness_26_same_size_either_way_is_a_warning(
    tiny: TinyDataset, orientation: int
) -> None:
    exif(tiny, orientation)
    (problem,) = check_panoptic(tiny.source())
    assert (problem.kind, problem.warning) == ("exif-rotation", True)


def test_robustness_26_tag_and_wrong_size(tiny: TinyDataset) -> None:
    exif(tiny, 6, upright=True)
    write_id_map(tiny.pngs / "1.png", tiny.maps[0].T.copy())
    (problem,) = check_panoptic(tiny.source())
    assert (problem.kind, problem.warning) == ("size-mismatch", False)
    assert "label map" in problem.message and "orientation 6" in problem.message


@pytest.mark.parametrize(
    ("segments", "text"),
    [
        pytest.param([], "every pixel is void", id="robustness_25_void"),
        pytest.param(
            [{"id": CAR, "category_id": 3, "area": 100, "iscrowd": 1}],
            "nothing but crowd",
            id="robustness_25_crowd",
        ),
    ],
)
def test_images_without_anything_to_learn(tiny: TinyDataset, segments: list, text: str) -> None:
    tiny.info["annotations"][0]["segments_info"] = segments
    problems = check_panoptic(tiny.save().source(), pixels=False)
    assert [p.kind for p in problems] == ["nothing-to-learn"]
    assert problems[0].warning
    assert text in str(problems[0])
    assert "unless DATALOADER.FILTER_EMPTY_ANNOTATIONS is False" in str(problems[0])


def test_robustness_24_equal_base_names_are_a_warning(tiny: TinyDataset) -> None:
    (tiny.images / "night").mkdir()
    os.rename(tiny.images / "2.png", tiny.images / "night" / "1.png")
    tiny.info["images"][1]["file_name"] = "night/1.png"
    (problem,) = check_panoptic(tiny.save().source())
    assert (problem.kind, problem.warning) == ("same-base-name", True)


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "L"])
def test_robustness_27_other_image_modes_are_fine(tiny: TinyDataset, mode: str) -> None:
    image = Image.open(tiny.images / "1.png").convert(mode)
    os.remove(tiny.images / "1.png")
    image.save(tiny.images / ("1.tiff" if mode == "CMYK" else "1.png"))
    assert check_panoptic(tiny.source()) == []
