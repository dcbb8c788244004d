"""Read and write videos frame by frame with OpenCV; frames are (H, W, 3) uint8 in BGR order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from panoptic_ext.atomic import TemporaryFile
from panoptic_ext.errors import PanopticExtError
from panoptic_ext.regular_files import VIDEO, check_regular_file

__all__ = ["VideoReader", "VideoWriter"]

_DEFAULT_FPS = 25.0


class VideoReader:
    """Reads a video.

    Attributes:
        fps: frames per second of the header; 25 if it has none below 1000.
        num_frames: of the header, which may be wrong; 0 if it has none.

    Raises:
        PanopticExtError: no regular file with content, or not a video that OpenCV can read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        check_regular_file(path, VIDEO)
        self._capture = cv2.VideoCapture(path)
        if not self._capture.isOpened():
            raise PanopticExtError(f"{path} is not a video that OpenCV can read")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = float(fps) if 0 < fps < 1000 else _DEFAULT_FPS
        self.num_frames = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __iter__(self) -> Iterator[np.ndarray]:
        count = 0
        try:
            while True:
                try:
                    read, frame = self._capture.read()
                except cv2.error as error:
                    raise PanopticExtError(
                        f"frame {count} of the video {self.path} cannot be read: {error}"
                    ) from error
                if not read:
                    break
                count += 1
                yield frame
        finally:
            self._capture.release()
        if not count:
            raise PanopticExtError(f"no frame of the video {self.path} can be read")


class VideoWriter:
    """Writes an .mp4 to a temporary file, which `commit` renames.

    Leaving the `with` block without `commit` removes the file.

    Args:
        path: of the video, ending in .mp4; its folder is made.
        fps: frames per second.
    """

    def __init__(self, path: str, fps: float) -> None:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        self._path, self._fps = path, fps
        self._temporary = TemporaryFile(path, kind=".mp4")
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def write(self, frame: np.ndarray) -> None:
        """Append a BGR frame; frames are resized to the size of the first one."""
        if self._writer is None:
            self._size = (frame.shape[1], frame.shape[0])
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(self._temporary.path, codec, self._fps, self._size)
            if not self._writer.isOpened():
                raise PanopticExtError(
                    f"OpenCV cannot write the video {self._path}: its mp4v encoder is missing or "
                    "the folder is not writable; --no-pictures with --save-panoptic needs neither"
                )
        if frame.shape[1::-1] != self._size:
            frame = cv2.resize(frame, self._size, interpolation=cv2.INTER_AREA)
        self._writer.write(np.ascontiguousarray(frame))

    def commit(self) -> None:
        """Finish the file and rename it."""
        self._release()
        self._temporary.commit()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._release()
        self._temporary.__exit__(*raised)

    def _release(self) -> None:
        if self._writer is not None:
            self._writer.release()
            self._writer = None
