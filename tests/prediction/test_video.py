"""Videos: frames are read as they were written, and a file is complete or missing."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from panoptic_ext.errors import PanopticExtError
from panoptic_ext.prediction.video import VideoReader, VideoWriter

SIZE = (48, 64)


def frame(level: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A frame of one colour, whose blue channel is the level."""
    return np.full((*size, 3), (level, 90, 200), np.uint8)


def write(path: Path, levels: list[int], fps: float = 10.0) -> Path:
    with VideoWriter(str(path), fps) as writer:
        for level in levels:
            writer.write(frame(level))
        writer.commit()
    return path


def test_written_frames_are_read_in_order_and_in_bgr(tmp_path: Path) -> None:
    path = write(tmp_path / "new folder" / "a.mp4", [20, 120, 220], fps=12.5)
    reader = VideoReader(str(path))
    assert reader.num_frames == 3 and reader.fps == pytest.approx(12.5)
    frames = list(reader)
    assert [f.shape for f in frames] == [(*SIZE, 3)] * 3
    for level, read in zip([20, 120, 220], frames, strict=True):
        assert np.abs(read.mean(axis=(0, 1)) - (level, 90, 200)).max() < 12  # lossy
    assert [p.name for p in path.parent.iterdir()] == ["a.mp4"]


def test_without_commit_the_temporary_file_is_removed_and_the_old_video_stays(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "a.mp4", [20])
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError), VideoWriter(str(path), 10.0) as writer:
        writer.write(frame(200))
        raise ZeroDivisionError
    with VideoWriter(str(path), 10.0):
        pass  # nothing to write, nothing to commit
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_frames_are_resized_to_the_size_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with VideoWriter(str(path), 10.0) as writer:
        for size in (SIZE, (24, 32), (96, 128)):
            writer.write(frame(100, size))
        writer.commit()
    assert [read.shape for read in VideoReader(str(path))] == [(*SIZE, 3)] * 3


@pytest.mark.parametrize(
    ("fps", "expected"), [(0.0, 25.0), (-1.0, 25.0), (1e6, 25.0), (30.0, 30.0)]
)
def test_a_header_without_a_frame_rate(
    fps: float, expected: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.mp4", [20])
    monkeypatch.setattr(cv2, "VideoCapture", lambda _: Capture(frames=1, fps=fps, count=-7))
    reader = VideoReader(str(path))
    assert reader.fps == expected and reader.num_frames == 0
    assert len(list(reader)) == 1


class Capture:
    """OpenCV's reader of a file that has `frames` frames, and then ends or raises an error."""

    def __init__(self, frames: int, fps: float = 10.0, count: int = 0, error: bool = False) -> None:
        self.left, self.error, self.released = frames, error, False
        self.values = {cv2.CAP_PROP_FPS: fps, cv2.CAP_PROP_FRAME_COUNT: float(count)}

    def isOpened(self) -> bool:
        return True

    def get(self, key: int) -> float:
        return self.values[key]

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.left -= 1
        if self.left < 0 and self.error:
            raise cv2.error("bad packet")
        return (True, frame(1)) if self.left >= 0 else (False, None)

    def release(self) -> None:
        self.released = True


@pytest.mark.parametrize(
    ("capture", "message"),
    [
        (Capture(0), "no frame of the video .*a.mp4 can be read"),
        (Capture(2, error=True), "frame 2 of the video .*a.mp4 cannot be read: .*bad packet"),
    ],
)
def test_damaged_videos(
    capture: Capture, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.mp4", [20])
    monkeypatch.setattr(cv2, "VideoCapture", lambda _: capture)
    with pytest.raises(PanopticExtError, match=message):
        list(VideoReader(str(path)))
    assert capture.released


def test_a_file_that_is_no_video_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("<html>")
    with pytest.raises(PanopticExtError, match=r"a\.mp4 is not a video that OpenCV can read"):
        VideoReader(str(tmp_path / "a.mp4"))
    with pytest.raises(PanopticExtError, match=r"b\.mp4"):
        VideoReader(str(tmp_path / "b.mp4"))


def test_a_missing_encoder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        def isOpened(self) -> bool:
            return False

        def release(self) -> None:
            pass

    monkeypatch.setattr(cv2, "VideoWriter", type("W", (), {
        "__new__": lambda *_: Closed(), "fourcc": staticmethod(lambda *_: 0)
    }))  # fmt: skip
    message = "cannot write the video .*a.mp4: .*--no-pictures with --save-panoptic needs neither"
    with (
        pytest.raises(PanopticExtError, match=message),
        VideoWriter(str(tmp_path / "a.mp4"), 10.0) as writer,
    ):
        writer.write(frame(1))
    assert not list(tmp_path.iterdir())
