"""The steps of a conversion: images, orientation, folders, failures, round trips."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageOps

from panoptic_ext.atomic import try_lock
from panoptic_ext.data import PanopticSource, check_panoptic
from panoptic_ext.data.coco.label_png import write_id_map
from panoptic_ext.data.convert import SOURCES, ConversionOptions, SourceInputs, convert, open_source
from panoptic_ext.data.convert.images import ImageHeader, oriented
from panoptic_ext.data.convert.output_folder import whole_folder
from panoptic_ext.data.datasets.shapes import ShapesParams, ensure_shapes
from panoptic_ext.errors import DatasetError
from panoptic_ext.interruption import Interrupted
from tests.data.convert.cases import converted, picture, read_result
from tests.tiny.panoptic_dataset import TinyDataset


@pytest.fixture
def tiny(tmp_path: Path) -> TinyDataset:
    return TinyDataset(tmp_path / "tiny")


def test_a_panoptic_data_set_stays_what_it_is(tiny: TinyDataset, tmp_path: Path) -> None:
    result = converted("auto", tiny.root, tmp_path / "out")
    before, after = tiny.info, result.content
    assert after["categories"] == before["categories"] and after["images"] == before["images"]
    for one, other in zip(before["annotations"], after["annotations"], strict=True):
        kept = [{k: s[k] for k in ("id", "category_id", "iscrowd", "area")} for s in
                other["segments_info"]]  # fmt: skip
        assert sorted(kept, key=str) == sorted(one["segments_info"], key=str)
    png = tmp_path / "out" / "panoptic" / "1.png"
    assert np.array_equal(np.asarray(Image.open(png)), np.asarray(Image.open(tiny.pngs / "1.png")))
    source = PanopticSource(*(str(tmp_path / "out" / part) for part in
                              ("panoptic.json", "images", "panoptic")))  # fmt: skip
    assert check_panoptic(source) == []


def test_the_block_of_yaml_names_what_is_there(tiny: TinyDataset, tmp_path: Path) -> None:
    result = converted("auto", tiny.root, tmp_path / "out", name="street")
    block = yaml.safe_load((tmp_path / "out" / "dataset.yaml").read_text())["DATASETS"]
    assert block["TRAIN"] == ["street"] and result.converted.name == "street"
    assert all(Path(path).exists() for path in block["PANOPTIC"]["street"].values())
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["images"] == 2 and report["classes"][1]["segments"] == 2


@pytest.mark.parametrize(("placement", "links"), [("link", 2), ("copy", 1), ("reference", 0)])
def test_where_images_are(tiny: TinyDataset, tmp_path: Path, placement: str, links: int) -> None:
    converted("auto", tiny.root, tmp_path / "out", placement=placement)
    image = tmp_path / "out" / "images" / "1.png"
    assert (image.stat().st_nlink if image.exists() else 0) == links
    block = yaml.safe_load((tmp_path / "out" / "dataset.yaml").read_text())["DATASETS"]
    assert (Path(block["PANOPTIC"]["out"]["IMAGE_ROOT"]) / "1.png").is_file()


def test_a_disk_without_hard_links_gets_copies(
    tiny: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("not here")

    monkeypatch.setattr(os, "link", refuse)
    converted("auto", tiny.root, tmp_path / "out")
    assert (tmp_path / "out" / "images" / "2.png").stat().st_nlink == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_maps_of_stored_pixels_are_turned_as_the_image_is(orientation: int) -> None:
    ids = np.arange(6, dtype=np.int32).reshape(2, 3)
    image = Image.fromarray(ids.astype(np.uint8))
    image.getexif()[274] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image))
    header = ImageHeader(2, 3, orientation)
    turned = oriented(ids, header, "stored", "image a.jpg")
    assert np.array_equal(turned, expected)
    if orientation in (2, 3, 4):
        assert np.array_equal(oriented(ids, header, None, "a", forced="upright"), ids)
        with pytest.raises(DatasetError, match=r"give --exif upright .*--exif stored"):
            oriented(ids, header, None, "image a.jpg")
    with pytest.raises(DatasetError, match="the labels are of 5 x 5 pixels"):
        oriented(np.zeros((5, 5), np.int32), header, None, "image a.jpg")


def test_images_of_one_stem_have_label_maps_of_their_own(tiny: TinyDataset, tmp_path: Path) -> None:
    (tiny.images / "2.png").rename(tiny.images / "1.jpg")
    tiny.info["images"][1]["file_name"] = "1.jpg"
    tiny.save()
    result = converted("auto", tiny.root, tmp_path / "out")
    names = [a["file_name"] for a in result.content["annotations"]]
    assert names == ["1.png.png", "1.jpg.png"]
    assert (result.maps["1.jpg"] == "person 1 crowd").any()


def test_failures_are_named_and_the_rest_is_converted(tiny: TinyDataset, tmp_path: Path) -> None:
    (tiny.images / "2.png").write_bytes(b"no image")
    write_id_map(tiny.pngs / "1.png", tiny.maps[0])
    report = converted("auto", tiny.root, tmp_path / "out").converted.report
    assert list(report.failed) == ["2.png"] and "cannot be read" in report.failed["2.png"]
    assert report.images == 1 and len(read_result(tmp_path / "out")[1]) == 1
    (tiny.images / "1.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match="2 of 2 images cannot be converted"):
        converted("auto", tiny.root, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_result_is_not_overwritten_by_accident(tiny: TinyDataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    converted("auto", tiny.root, out)
    with pytest.raises(DatasetError, match=r"is not empty .*--overwrite"):
        converted("auto", tiny.root, out)
    before = (out / "panoptic.json").stat().st_ino
    converted("auto", tiny.root, out, overwrite=True)
    assert (out / "panoptic.json").stat().st_ino != before
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(DatasetError, match=r"has 'thesis.tex', which no conversion wrote"):
        converted("auto", tiny.root, out, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "tiny"]


def test_input_and_output_must_differ(tiny: TinyDataset) -> None:
    with pytest.raises(DatasetError, match="inside the input"):
        converted("auto", tiny.root, tiny.root / "converted")
    with pytest.raises(DatasetError, match="around the input"):
        converted("auto", tiny.json, tiny.root, inputs={"png_root": str(tiny.pngs)})


def test_a_signal_leaves_nothing_behind(
    tiny: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source("coco-panoptic", SourceInputs(str(tiny.root)))
    labels = source.labels

    signals = [signal.SIGINT]  # a second one would end the process at once

    def interrupted(*arguments):
        if signals:
            signal.raise_signal(signals.pop())
        return labels(*arguments)

    monkeypatch.setattr(source, "labels", interrupted)
    with pytest.raises(Interrupted, match="nothing was written"):
        convert(source, str(tmp_path / "out"), ConversionOptions(num_threads=1))
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]


def test_the_folder_of_a_killed_process_goes_and_that_of_a_living_one_stays(
    tiny: TinyDataset, tmp_path: Path
) -> None:
    for name in ("killed", "living"):
        (tmp_path / f"out.unfinished-{name}").mkdir()
        (tmp_path / f"out.unfinished-{name}" / ".lock").touch()
    with open(tmp_path / "out.unfinished-living" / ".lock", "rb") as lock:
        assert try_lock(lock) == "free"
        converted("auto", tiny.root, tmp_path / "out")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["out", "out.unfinished-living", "tiny"]
    assert not (tmp_path / "out" / ".lock").exists()


def test_what_is_no_label_at_all(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "photo.jpg")
    with pytest.raises(DatasetError, match="in no format that is recognised") as error:
        open_source("auto", SourceInputs(str(tmp_path / "a")))
    assert all(f"  {name}: " in str(error.value) for name in SOURCES)
    with pytest.raises(DatasetError, match="there is no file or folder"):
        open_source("auto", SourceInputs(str(tmp_path / "nowhere")))
    with pytest.raises(DatasetError, match="does not take --semantic"):
        open_source("labelme", SourceInputs(str(tmp_path / "a"), semantic="x"))


def test_generated_data_round_trip(tmp_path: Path) -> None:
    folder = Path(ensure_shapes(ShapesParams(num_val=3, cache=str(tmp_path / "cache")), "val"))
    inputs = {"png_root": str(folder / "panoptic"), "image_root": str(folder / "images")}
    first = converted("auto", folder / "panoptic_val.json", tmp_path / "a", inputs=inputs)
    assert len(first.maps) == 3
    for path in (tmp_path / "a" / "panoptic").iterdir():
        pixels = np.asarray(Image.open(folder / "panoptic" / path.name))
        assert np.array_equal(np.asarray(Image.open(path)), pixels)


def test_a_result_that_cannot_take_its_place_brings_the_earlier_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rename, moved = tmp_path / "out", os.rename, []
    out.mkdir()
    (out / "report.json").write_text("earlier")

    def second_fails(old: str, new: str) -> None:
        moved.append(new)
        if len(moved) == 2:
            raise OSError(28, "No space left on device")
        rename(old, new)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(OSError, match="No space left"), whole_folder(str(out)):
        pass
    assert (out / "report.json").read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
