"""The one call: pictures of every kind, several of them, failures, and names of models."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from PIL import Image

from panoptic_ext import load
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.errors import (
    ConfigError,
    DownloadError,
    ImageError,
    PanopticExtError,
    UnreadableFileError,
)
from panoptic_ext.prediction.load import PanopticPredictor
from panoptic_ext.prediction.video import VideoWriter
from tests.prediction.test_predictor import FakeModel, predictor
from tests.tiny.file_server import HTML_PAGE, FileServer

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
    made.weights, made.cfg = "some.pth", load_cfg("")
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


def test_segment_image_gives_the_kind_and_the_classes(model: PanopticPredictor) -> None:
    whole = model.segment_image(gradient(), kind="semantic")
    assert not any(segment.isthing for segment in whole)
    assert whole.shares().keys() == {"dark", "bright"}
    (bright,) = model.segment_image(gradient(), classes="bright")
    assert bright.name == "bright"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "semntic"}, "did you mean 'semantic'"),
        ({"classes": ["brigt"]}, "did you mean 'bright'"),
        ({"output_image_name": "out.gif"}, "cannot save to out.gif: expected a picture ending"),
        ({"channels": "GRB"}, "unknown channels 'GRB'"),
    ],
)
def test_wrong_arguments_of_segment_image_are_refused_before_the_model_runs(
    model: PanopticPredictor, monkeypatch: pytest.MonkeyPatch, arguments: dict, message: str
) -> None:
    monkeypatch.setattr(model, "predictor", SimpleNamespace(metadata=model.predictor.metadata))
    with pytest.raises(ConfigError, match=message):
        model.segment_image(gradient(), **arguments)


def test_an_unknown_model_has_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mask2former_R50_coco"):
        load("mask2former_R50_cocoo")
    with pytest.raises(ConfigError, match="does not exist"):
        load(tmp_path / "no_such_run")


def test_lists_may_hold_folders_globs_and_videos_and_a_generator_has_no_length(
    tmp_path: Path, model: PanopticPredictor
) -> None:
    for number in range(2):
        Image.fromarray(gradient(seed=number)).save(tmp_path / f"{number}.png")
    with VideoWriter(str(tmp_path / "clip.mp4"), 10.0) as writer:
        for level in (60, 180, 90):
            frame = np.full((48, 64, 3), level, np.uint8)
            frame[:24] = 0
            writer.write(frame)
        writer.commit()
    frames = model(tmp_path / "clip.mp4", batch_size=2)
    with pytest.raises(TypeError, match="known at the end"):
        len(frames)
    assert bool(frames) and "a yet unknown number" in repr(frames)
    names = [Path(result.file_name).name for result in frames]
    assert names == ["000000", "000001", "000002"]
    given = [str(tmp_path / "*.png"), gradient(seed=5), tmp_path / "clip.mp4"]
    results = list(model(iter(given)))
    assert [Path(r.file_name).name for r in results] == ["0.png", "1.png", "", *names]
    assert np.array_equal(results[2].image, gradient(seed=5)[:, :, ::-1])
    assert len(list(model(tmp_path))) == 5  # the folder: two pictures and the video


def test_a_broken_video_does_not_stop_a_folder_and_a_folder_of_broken_files_is_an_error(
    tmp_path: Path, model: PanopticPredictor
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(
        PanopticExtError, match=r"none of 1 pictures .*\n  .*a\.mp4: is not a video"
    ):
        list(model(tmp_path))
    Image.fromarray(gradient()).save(tmp_path / "b.png")
    results = model(tmp_path)
    assert [Path(r.file_name).name for r in results] == ["b.png"] and results.done == 1
    assert list(results.failed) == [str(tmp_path / "a.mp4")]


def test_two_files_whose_drawn_pictures_would_have_one_name_are_two_pictures(
    tmp_path: Path, model: PanopticPredictor
) -> None:
    for name in ("a.bmp", "a.bmp.png"):
        Image.fromarray(gradient()).save(tmp_path / name)
    assert len(list(model(tmp_path))) == 2


def test_a_picture_of_an_address_is_fetched_each_time_and_its_errors_name_it(
    tmp_path: Path, model: PanopticPredictor, file_server: FileServer, caplog
) -> None:
    path = tmp_path / "a.png"
    for seed in (0, 1):
        Image.fromarray(gradient(seed=seed)).save(path)
        address = file_server.add("a.png", path.read_bytes())
        assert np.array_equal(model(address).image, gradient(seed=seed))
    assert caplog.text == ""
    page = file_server.add("page.png", HTML_PAGE, content_type="text/html")
    with pytest.raises(DownloadError, match=r"page\.png.*HTML page.*or get .* and give its path$"):
        model(page)
    broken = file_server.add("broken.png", b"no picture")
    with pytest.raises(UnreadableFileError, match=f"image {broken} cannot be read"):
        model(broken)
    results = model([address, page, broken], skip_failures=True)
    assert len(list(results)) == 1 and list(results.failed) == [page, broken]
    video = tmp_path / "clip.mp4"
    with VideoWriter(str(video), 10.0) as writer:
        writer.write(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
        writer.commit()
    frames = list(model(file_server.add("clip.mp4", video.read_bytes())))
    assert [r.file_name[-15:] for r in frames] == ["clip.mp4/000000"]


def test_an_array_may_be_changed_before_its_result_is_drawn(model: PanopticPredictor) -> None:
    """As a camera's buffer is, into which the next frame is read."""
    buffer = gradient().copy()
    result = model(buffer)
    buffer[:] = 0
    assert np.array_equal(result.image, gradient()[:, :, ::-1])


def test_outputs_are_kept_on_wish(model: PanopticPredictor) -> None:
    assert model(gradient()).outputs is None
    assert "image" in model(gradient(), keep_outputs=True).outputs
