"""Bad input: each kind gets one clear error from the loader and from the check."""

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
from tests.tiny.panoptic_dataset import CAR, HEIGHT, ROAD, WIDTH, TinyDataset

Spoil = Callable[[TinyDataset], Any]


def case(kind: str, text: str, spoil: Spoil) -> Any:
    return pytest.param(kind, text, spoil, id=f"{kind}: {text}")


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
    case("missing-key", "no list 'images'", lambda t: t.info.pop("images")),
    case("missing-key", "'annotations'", lambda t: t.info.pop("annotations")),
    case("missing-key", "'categories'", lambda t: t.info.pop("categories")),
    case("instances-json", "expected a panoptic one", instances_json),
    case("no-annotations", "empty", lambda t: t.info["annotations"].clear()),
    case("duplicate-image-id", "'1' occurs 2 times", image_id),
    case("duplicate-category", "id '7' occurs 2 times", category(1, id=7)),
    case("duplicate-category", "name 'road' occurs 2", category(1, name="road")),
    case("bad-isthing", "no 'isthing'",
         lambda t: t.info["categories"][1].pop("isthing")),
    case("bad-isthing", "2, expected isthing 0 or 1", category(1, isthing=2)),
    case("bad-annotation", "annotation None",
         lambda t: t.info["annotations"].insert(0, None)),
    case("unknown-category", "is not in categories", set_in("category_id", [1])),
    case("unknown-category", "True is not in", set_in("category_id", True)),
    case("bad-category", "no integer 'id'", category(0, id=[1])),
    case("bad-area", "area is inf", set_in("area", float("inf"))),
    case("bad-iscrowd", "iscrowd is '0'", set_in("iscrowd", "0")),
    case("unknown-category", "category_id 4 is not in categories", set_in("category_id", 4)),
    case("segment-id-0", "0 is void", set_in("id", 0)),
    case("segment-id-range", "from 1 to 16777215", set_in("id", -4)),
    case("segment-id-range", "from 1 to 16777215", set_in("id", 2**24)),
    case("segment-id-range", "from 1 to 16777215", set_in("id", "5")),
    case("duplicate-segment", "id '5' occurs 2 times", set_in("id", CAR)),
    case("bad-area", "no 'area'", drop("area")),
    case("bad-iscrowd", "no 'iscrowd'", drop("iscrowd")),
    case("no-image-entry", "without an entry in images", annotation(image_id=9)),
    case("unsafe-name", "'/etc/1.png'", annotation(file_name="/etc/1.png")),
    case("unsafe-name", "'../1.png'", annotation(file_name="../1.png")),
    case("unsafe-name", "'a/../../1.png'",
         lambda t: t.info["images"][0].update(file_name="a/../../1.png")),
    case("bad-size", "0, 32, expected positive",
         lambda t: t.info["images"][0].update(height=0)),
    case("no-segments-info", "None", annotation(segments_info=None)),
    case("duplicate-png", "'2.png' occurs 2", annotation(file_name="2.png")),
    case("missing-image", "nor one of that name", lambda t: os.remove(t.images / "2.png")),
    case("missing-png", "no label map", lambda t: os.remove(t.pngs / "2.png")),
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
        pytest.param(None, "does not exist", id="missing"),
        pytest.param("", "is empty", id="empty"),
        pytest.param('{"images": [', "is not valid JSON", id="cut_off"),
        pytest.param("[1]", "holds a list, expected an object", id="no_object"),
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
    case("wrong-area", "area is 3, expected the number of pixels",
         lambda t: (t.segment.update(area=3), t.save())),
    case("damaged-image", "cannot be read", lambda t: truncate(t.images / "1.png")),
    case("bad-label-map", "is damaged", lambda t: truncate(t.pngs / "1.png")),
    case("bad-label-map", "grayscale PNG, expected RGB", lambda t: resave_png(t, "L")),
    case("bad-label-map", "palette PNG, expected", lambda t: resave_png(t, "P")),
    case("bad-label-map", "16-bit PNG, expected RGB",
         lambda t: write_id_map(t.pngs / "1.png", t.maps[0] % 999, "divisor")),
    case("bad-label-map", "is a JPEG file, expected PNG", jpeg_mask),
    case("size-mismatch", "image is 24 x 31 (height x width), the JSON", smaller_image),
    case("size-mismatch", "is 23 x 32, the image", smaller_png),
    case("id-not-in-json", "segment id 4242: 64 pixels have this id", other_id),
    case("id-not-in-png", "segment id 5: no pixel has this id", without_car),
    case("exif-rotation", "(orientation 6) turns it to 32 x 24", exif),
    case("exif-rotation", "(orientation 3) turns or mirrors it",
         lambda t: exif(t, 3)),
    case("deep-image", "expected 8 bits a channel", lambda t: deep(t, "I;16")),
    case("deep-image", "floating point", lambda t: deep(t, "F")),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "spoil"), PIXELS)
def test_check_of_pixels(tiny: TinyDataset, kind: str, text: str, spoil: Spoil) -> None:
    spoil(tiny)
    found = [p for p in check_panoptic(tiny.source()) if p.kind == kind]
    assert found
    assert text in str(found[0])
    assert "image id 1" in found[0].where


@pytest.mark.parametrize("orientation", [5, 6, 8])
def test_a_turned_image_annotated_upright_is_fine(tiny: TinyDataset, orientation: int) -> None:
    exif(tiny, orientation, upright=True)
    assert check_panoptic(tiny.source()) == []
    assert PanopticDatasetMapper(True, augmentations=[], image_format="RGB")(tiny.load()[0])


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_a_turn_that_keeps_the_size_is_a_warning(tiny: TinyDataset, orientation: int) -> None:
    exif(tiny, orientation)
    (problem,) = check_panoptic(tiny.source())
    assert (problem.kind, problem.warning) == ("exif-rotation", True)


def test_a_turn_to_another_size_than_the_label_map_is_an_error(tiny: TinyDataset) -> None:
    exif(tiny, 6, upright=True)
    write_id_map(tiny.pngs / "1.png", tiny.maps[0].T.copy())
    (problem,) = check_panoptic(tiny.source())
    assert (problem.kind, problem.warning) == ("size-mismatch", False)
    assert "label map" in problem.message and "orientation 6" in problem.message


@pytest.mark.parametrize(
    ("segments", "text"),
    [
        pytest.param([], "every pixel is void", id="void"),
        pytest.param(
            [{"id": CAR, "category_id": 3, "area": 100, "iscrowd": 1}],
            "nothing but crowd",
            id="crowd",
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


def test_equal_base_names_are_a_warning(tiny: TinyDataset) -> None:
    (tiny.images / "night").mkdir()
    os.rename(tiny.images / "2.png", tiny.images / "night" / "1.png")
    tiny.info["images"][1]["file_name"] = "night/1.png"
    (problem,) = check_panoptic(tiny.save().source())
    assert (problem.kind, problem.warning) == ("same-base-name", True)


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "L"])
def test_other_image_modes_are_fine(tiny: TinyDataset, mode: str) -> None:
    image = Image.open(tiny.images / "1.png").convert(mode)
    os.remove(tiny.images / "1.png")
    image.save(tiny.images / ("1.tiff" if mode == "CMYK" else "1.png"))
    assert check_panoptic(tiny.source()) == []
