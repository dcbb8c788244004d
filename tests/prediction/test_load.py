"""The one call: pictures of every kind, several of them, failures, and names of models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from PIL import Image

from panoptic_ext import load
from panoptic_ext.errors import ConfigError, ImageError, PanopticExtError, UnreadableFileError
from panoptic_ext.prediction.load import PanopticPredictor
from tests.prediction.test_predictor import FakeModel, predictor
from tests.tiny.file_server import FileServer

METADATA = Metadata(
    name="bright_or_dark", stuff_classes=["dark", "bright"], stuff_colors=[(0, 0, 0), (9, 9, 9)]
)


class BrightOrDark(FakeModel):
    """Two segments: pixels above the image's mean, and the others."""

    def one(self, image):
        ids = (image.sum(0) > image.sum(0).mean()).int() + 1
        segments = [{"id": i + 1, "isthing": False, "category_id": i} for i in range(2)]
        return {"panoptic_seg": (ids, segments), "image": image}


@pytest.fixture
def model() -> PanopticPredictor:
    made = predictor(BrightOrDark(), input_format="BGR")
    made.metadata = METADATA
    made.weights = "some.pth"
    return PanopticPredictor(made)


def gradient(width: int = 6, seed: int = 0) -> np.ndarray:
    """(4, width, 3) uint8 RGB."""
    return np.random.default_rng(seed).integers(0, 256, (4, width, 3), np.uint8)


def test_one_picture_in_every_form_has_one_result(
    tmp_path: Path, model: PanopticPredictor, file_server: FileServer
) -> None:
    rgb = gradient()
    path = tmp_path / "a.png"
    Image.fromarray(rgb).save(path)
    expected = model(path)
    assert expected.file_name == str(path)
    assert np.array_equal(expected.image, rgb)
    bgr = np.ascontiguousarray(rgb[:, :, ::-1])
    forms = {
        "text": model(str(path)),
        "PIL": model(Image.fromarray(rgb)),
        "array": model(bgr),
        "RGB array": model(rgb, channels="RGB"),
        "tensor": model(torch.from_numpy(bgr)),
        "RGB tensor": model(torch.from_numpy(rgb), channels="RGB"),
        "address": model(file_server.add("a.png", path.read_bytes())),
    }
    for name, result in forms.items():
        assert result == expected, name
        assert np.array_equal(result.image, rgb), name


def test_several_come_in_order_and_each_batch_when_it_is_due(
    tmp_path: Path, model: PanopticPredictor
) -> None:
    widths = [6, 6, 6, 5, 6]
    for number, width in enumerate(widths):
        Image.fromarray(gradient(width, number)).save(tmp_path / f"{number}.png")
    results = model(tmp_path, batch_size=2)
    assert len(results) == 5 and model.predictor.model.batches == []
    first = next(results)
    assert first.file_name.endswith("0.png")
    assert len(model.predictor.model.batches) == 1
    rest = list(results)
    assert [r.width for r in (first, *rest)] == widths
    assert [len(batch) for batch in model.predictor.model.batches] == [2, 1, 1, 1]
    alone = [model(tmp_path / f"{number}.png") for number in range(5)]
    assert [first, *rest] == alone
    assert list(model(str(tmp_path / "*.png"))) == alone


def test_a_bad_file_of_a_folder_is_left_out_and_named(
    tmp_path: Path, model: PanopticPredictor, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        Image.fromarray(gradient(seed=number)).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    results = model(tmp_path, batch_size=3)
    assert [Path(r.file_name).name for r in results] == ["0.png", "2.png"]
    assert list(results.failed) == [str(tmp_path / "1.png")]
    assert "1.png" in caplog.text
    with pytest.raises(UnreadableFileError, match=r"1\.png"):
        list(model(tmp_path, skip_failures=False))
    listed = model([tmp_path / "0.png", tmp_path / "1.png", tmp_path / "2.png"])
    next(listed)
    with pytest.raises(UnreadableFileError, match=r"1\.png"):
        next(listed)
    assert next(listed).file_name.endswith("2.png")


def test_a_picture_that_fails_in_a_batch_fails_alone(model: PanopticPredictor) -> None:
    model.predictor.model.most = 1  # a larger batch raises MemoryError
    assert len(list(model([gradient(), gradient(seed=1)], batch_size=2))) == 2


def test_what_is_no_picture_is_refused(tmp_path: Path, model: PanopticPredictor) -> None:
    with pytest.raises(ConfigError, match="RGBA"):
        model(gradient(), channels="RGBA")
    with pytest.raises(ConfigError, match="batch_size"):
        model(gradient(), batch_size=0)
    with pytest.raises(ConfigError, match="no image or video"):
        model(tmp_path)
    with pytest.raises(ImageError, match="image 1 of the list"):
        list(model([gradient(), None]))
    with pytest.raises(PanopticExtError, match=r"nowhere\.png"):
        model(tmp_path / "nowhere.png")


def test_segment_image_writes_a_picture(tmp_path: Path, model: PanopticPredictor) -> None:
    result = model.segment_image(gradient(), output_image_name=tmp_path / "out.png")
    assert Image.open(tmp_path / "out.png").size[0] >= result.width
    assert {s.name for s in result} == {"dark", "bright"}


def test_an_unknown_model_has_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mask2former_R50_coco"):
        load("mask2former_R50_cocoo")
    with pytest.raises(ConfigError, match="does not exist"):
        load(tmp_path / "no_such_run")
