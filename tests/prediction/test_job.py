"""PredictionJob with a model that needs no weights: results, repeats, refusals and signals."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import Metadata
from PIL import Image

from panoptic_ext.data import read_id_map
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.errors import ConfigError
from panoptic_ext.prediction.inputs import search_inputs
from panoptic_ext.prediction.job import JobOptions, PredictionJob, check_inputs
from panoptic_ext.prediction.predictor import Predictor
from panoptic_ext.prediction.video import VideoReader, VideoWriter
from tests.prediction.test_predictor import FakeModel, predictor


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Predictor:
    """Pixels above an image's mean are segment 2, which its segments_info leaves out: void."""
    one = predictor(FakeModel())
    one.cfg, one.weights = load_cfg(""), "no file"
    one.metadata = Metadata(
        name="job_test",
        thing_classes=["grass"],
        stuff_classes=["grass"],
        stuff_colors=[[30, 200, 30]],
        isthing=[False],
        thing_dataset_id_to_contiguous_id={},
        stuff_dataset_id_to_contiguous_id={40: 0},
        label_divisor=1000,
    )
    return one


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two images, one that is broken, and a video of two frames."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(("a.png", "sub/b.png")):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "broken.png").write_text("<html>")
    with VideoWriter(str(folder / "clip.mp4"), 10.0) as writer:
        for level in (60, 180):
            frame = np.full((48, 64, 3), level, np.uint8)
            frame[:24] = 0
            writer.write(frame)
        writer.commit()
    return folder


def run(fake: Predictor, photos: Path, output: Path, **options: Any) -> PredictionJob:
    job = PredictionJob(fake, str(output), JobOptions(**options))
    job.run(search_inputs([str(photos)], exclude=str(output)).inputs)
    return job


def test_pictures_and_panoptic_results_of_everything(
    fake: Predictor, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    job = run(fake, photos, output, panoptic=True)
    assert job.summary() == "3 predicted, 0 were there already, 1 failed"
    assert [Path(path).name for path in job.failed] == ["broken.png"]
    assert len(list(VideoReader(str(output / "clip.mp4")))) == 2
    content = json.loads(Path(job.write_json()).read_text())
    names = ["a", "sub/b", "clip.mp4/000000", "clip.mp4/000001"]
    assert sorted(image["id"] for image in content["images"]) == sorted(names)
    for annotation in content["annotations"]:
        ids = read_id_map(output / "panoptic" / annotation["file_name"])
        (segment,) = annotation["segments_info"]
        assert segment["category_id"] == 40  # the data set's
        assert (ids == segment["id"]).sum() == segment["area"]
        assert ids.shape == (48, 64)
    assert (output / "a.png").is_file() and (output / "sub" / "b.png").is_file()


def test_a_second_job_does_only_what_is_missing(
    fake: Predictor, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    run(fake, photos, output)
    (output / "a.png").unlink()
    again = run(fake, photos, output)
    assert again.summary() == "1 predicted, 2 were there already, 1 failed"
    assert again.write_json() == "" and again.results is None
    assert run(fake, photos, output, overwrite=True).files.done == 3


def test_batches_and_no_pictures(fake: Predictor, photos: Path, tmp_path: Path) -> None:
    alone = run(fake, photos, tmp_path / "alone", panoptic=True, pictures=False)
    batched = run(fake, photos, tmp_path / "batched", panoptic=True, pictures=False, batch_size=3)
    assert max(map(len, fake.model.batches)) == 2
    assert alone.pictures is None and not (tmp_path / "alone" / "a.png").exists()
    contents = [Path(job.write_json()).read_text() for job in (alone, batched)]
    assert contents[0] == contents[1]


def test_a_folder_of_another_models_results_is_refused(
    fake: Predictor, photos: Path, tmp_path: Path
) -> None:
    run(fake, photos, tmp_path / "out")
    fake.weights = "another file"
    with pytest.raises(ConfigError, match="the weights were 'no file', are 'another file'"):
        PredictionJob(fake, str(tmp_path / "out"))


def test_a_signal_ends_the_job_after_the_current_file(
    fake: Predictor, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = FakeModel.one

    def interrupted(self: FakeModel, image: Any) -> dict[str, Any]:
        signal.raise_signal(signal.SIGTERM)
        return one(self, image)

    (photos / "broken.png").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(FakeModel, "one", interrupted)
        job = run(fake, photos, tmp_path / "out")
    assert job.files.stop and job.summary().endswith(
        "1 predicted, 0 were there already, 0 failed, 2 left"
    )
    assert run(fake, photos, tmp_path / "out").summary().startswith("2 predicted, 1 were there")


def test_inputs_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing to predict.*nothing matches"):
        check_inputs(search_inputs([str(tmp_path / "*.png")]).inputs, "out")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    inputs = search_inputs([str(tmp_path / "a.png")]).inputs
    check_inputs(inputs, str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="would replace the input"):
        check_inputs(inputs, str(tmp_path))


def test_lists_have_a_row_for_each_frame_of_a_video_and_go_on(
    fake: Predictor, photos: Path, tmp_path: Path
) -> None:
    inputs = search_inputs([str(photos)]).inputs
    options = JobOptions(pictures=False, lists=True)
    job = PredictionJob(fake, str(tmp_path / "out"), options)
    job.run(inputs)
    assert job.lists is not None and list(job.failed) == [str(photos / "broken.png")]
    images = json.loads(job.lists.json_text())
    names = ["a.png", "clip.mp4/000000", "clip.mp4/000001", "sub/b.png"]
    assert [image["file_name"] for image in images] == names
    assert all([s["name"] for s in image["segments"]] == ["grass"] for image in images)
    again = PredictionJob(fake, str(tmp_path / "out"), options)
    again.run(inputs)
    assert again.skipped == 3 and again.lists is not None
    assert again.lists.json_text() == job.lists.json_text()


def test_an_image_that_fails_leaves_neither_picture_nor_results(
    fake: Predictor, photos: Path, tmp_path: Path
) -> None:
    """Its name fits the picture, but not the label PNG; or its picture cannot be written."""
    (photos / "sub" / "b.png").rename(photos / ("n" * 251 + ".png"))
    (photos / "clip.mp4").unlink()
    output = tmp_path / "out"
    (output / "a.png").mkdir(parents=True)  # in the way of the picture
    job = run(fake, photos, output, panoptic=True, lists=True)
    reasons = {Path(path).name[0]: reason for path, reason in job.failed.items()}
    assert "would have 259 bytes" in reasons["n"]
    assert job.drawn == [] and len(reasons) == 3
    assert not [path for path in output.rglob("*.png") if path.is_file()]
    assert json.loads(Path(job.write_json()).read_text())["images"] == []
    assert job.lists is not None and job.lists.json_text() == "[]\n"


@pytest.mark.parametrize("error", [RuntimeError("frame"), KeyboardInterrupt()])
def test_a_video_that_ends_early_leaves_no_results_of_its_frames(
    fake: Predictor,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    output, written = tmp_path / "out", []
    write = VideoWriter.write

    def fails(self: VideoWriter, frame: np.ndarray) -> None:
        written.append(frame)
        if len(written) == 2:
            raise error
        write(self, frame)

    monkeypatch.setattr(VideoWriter, "write", fails)
    job = PredictionJob(fake, str(output), JobOptions(panoptic=True, lists=True))
    inputs = search_inputs([str(photos / "clip.mp4")]).inputs
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            job.run(inputs)
    else:
        job.run(inputs)
        assert list(job.failed.values()) == ["frame"]
    assert len(written) == 2 and not list(output.rglob("*.png"))
    assert json.loads(Path(job.write_json()).read_text())["images"] == []
    assert job.lists is not None and job.lists.json_text() == "[]\n"
