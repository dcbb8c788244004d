"""Label PNGs that hold class and instance: in one number of 8 or 16 bits, or in two channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from panoptic_ext.errors import DatasetError
from tests.data.convert.cases import converted, picture

SIZE = (2, 4)
NAMES = {1: "car", 2: "sky"}
MAP = [["car 1", "car 1", "car 2", "car 2"], ["", "sky", "sky", "car 3 crowd"]]
INSTANCE_CLASS = np.array([[1001, 1001, 7001, 7001], [0, 2, 2, 1]])
CLASS_INSTANCE = np.array([[1000, 1000, 1007, 1007], [0, 2, 2, 1]])


def labels(root: Path, pixels: np.ndarray, name: str = "sub/a 1") -> Path:
    picture(root / "images" / f"{name}.jpg", SIZE)
    picture(root / "images" / "unlabelled.jpg", SIZE)
    path = root / "labels" / f"{name}.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(pixels).save(path)
    return root / "labels"


@pytest.mark.parametrize(
    ("source", "values"), [("instance-class", INSTANCE_CLASS), ("class-instance", CLASS_INSTANCE)]
)
def test_one_number(tmp_path: Path, source: str, values: np.ndarray) -> None:
    path = labels(tmp_path, values.astype(np.uint16))
    result = converted(source, path, tmp_path / "out", inputs={"names": NAMES}, things="car")
    assert result.maps["sub/a 1.jpg"].tolist() == MAP
    assert result.converted.report.unannotated == ["unlabelled.jpg"]
    assert [(c["id"], c["name"]) for c in result.content["categories"]] == [(1, "car"), (2, "sky")]


def test_eight_bits_another_divisor_and_names_by_number(tmp_path: Path) -> None:
    path = labels(tmp_path, np.array([[12, 12, 22, 22], [0, 0, 0, 1]], np.uint8))
    result = converted(
        "instance-class", path, tmp_path / "out", inputs={"divisor": 10}, things="class_2"
    )
    expected = [["class_2 1"] * 2 + ["class_2 2"] * 2, ["", "", "", "class_1"]]
    assert result.maps["sub/a 1.jpg"].tolist() == expected


def test_class_0_where_another_value_is_void(tmp_path: Path) -> None:
    path = labels(tmp_path, np.array([[0, 0, 1000, 1000], [255, 0, 0, 0]], np.uint16))
    inputs = {"void_values": frozenset({255}), "names": {0: "car"}}
    result = converted("instance-class", path, tmp_path / "out", inputs=inputs, things="car")
    assert result.maps["sub/a 1.jpg"][1, 0] == ""
    assert result.maps["sub/a 1.jpg"][0].tolist() == ["car 1 crowd"] * 2 + ["car 2"] * 2


@pytest.mark.parametrize("channels", ["RGB", "RGBA", "LA"])
def test_two_channels(tmp_path: Path, channels: str) -> None:
    pixels = np.zeros((*SIZE, len(channels)), np.uint8)
    pixels[..., 0] = [[1, 1, 1, 1], [0, 2, 2, 1]]
    pixels[..., 1] = [[1, 1, 9, 9], [0, 0, 0, 0]]
    path = labels(tmp_path, pixels)
    result = converted("two-channel", path, tmp_path / "out", inputs={"names": NAMES}, things="car")
    assert result.maps["sub/a 1.jpg"].tolist() == MAP


def test_grey_pngs_could_be_either(tmp_path: Path) -> None:
    path = labels(tmp_path, INSTANCE_CLASS.astype(np.uint16), "a")
    with pytest.raises(DatasetError, match="formats instance-class, class-instance; name"):
        converted("auto", path, tmp_path / "out", things="all")


def test_faults_of_folders(tmp_path: Path) -> None:
    path = labels(tmp_path, INSTANCE_CLASS.astype(np.uint16))
    (tmp_path / "images" / "sub" / "a 1.jpg").rename(tmp_path / "images" / "sub" / "b.jpg")
    with pytest.raises(DatasetError, match=r"1 of 1 label PNGs .* have no image of their name"):
        converted("instance-class", path, tmp_path / "out", things="all")
    with pytest.raises(DatasetError, match=r"folder of the images is missing: .*nowhere"):
        inputs = {"image_root": str(tmp_path / "nowhere")}
        converted("instance-class", path, tmp_path / "out", inputs=inputs, things="all")
    with pytest.raises(DatasetError, match="--divisor is 0"):
        converted("instance-class", path, tmp_path / "out", inputs={"divisor": 0}, things="all")


def test_a_label_map_of_another_size_is_refused_by_its_header(tmp_path: Path) -> None:
    path = labels(tmp_path, np.ones((3, 3), np.uint16))
    with pytest.raises(DatasetError, match=r"is 3 x 3 \(height x width\), its image is 2 x 4"):
        converted("instance-class", path, tmp_path / "out", things="all")
