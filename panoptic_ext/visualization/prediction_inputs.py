"""From what a user names (files, folders, globs) to the list of images and videos to predict."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from panoptic_ext.regular_files import IMAGE, file_problem

__all__ = ["IMAGE_SUFFIXES", "VIDEO_SUFFIXES", "PredictionInput", "find_inputs"]

_COMMON = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".jp2", ".png", ".tif", ".tiff", ".webp")
IMAGE_SUFFIXES = (*_COMMON, ".pbm", ".pgm", ".pnm", ".ppm")
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
_PICTURE_SUFFIXES = (".jpeg", ".jpg", ".png")


@dataclass(frozen=True)
class PredictionInput:
    """One file to predict.

    Attributes:
        path: of the file.
        name: its path below the common folder of all inputs, with "/": unique, and the picture's
            name where that is a JPEG or PNG.
        is_video: a video file instead of an image.
        problem: why it cannot be used, or "".
    """

    path: str
    name: str
    is_video: bool = False
    problem: str = ""

    @property
    def picture_name(self) -> str:
        """Name of the drawn file: the suffix stays where the format can be written."""
        wanted = (".mp4",) if self.is_video else _PICTURE_SUFFIXES
        if self.name.lower().endswith(wanted):
            return self.name
        return self.name + wanted[-1]


def find_inputs(patterns: Sequence[str], *, exclude: str = "") -> list[PredictionInput]:
    """Expand files, folders (with their sub-folders) and globs.

    Args:
        patterns: as given on a command line. A file is tried whatever its suffix; in folders
            only known image and video suffixes count.
        exclude: a folder that is left out, such as the one that results go to.

    Returns:
        Every file once, in the order given, folders sorted. A pattern that matches nothing is an
        entry with a `problem`.
    """
    excluded = os.path.realpath(exclude) + os.sep if exclude else ""
    folders: list[str] = []
    paths: list[str] = []
    missing: list[PredictionInput] = []
    for pattern in patterns:
        found, problem = _expand(os.path.expanduser(pattern), folders, excluded)
        paths.extend(found)
        if problem:
            missing.append(PredictionInput(pattern, pattern, problem=problem))
    by_file: dict[str, str] = {}
    for path in paths:
        by_file.setdefault(os.path.realpath(path), path)
    unique = list(by_file.values())
    root = os.path.commonpath(folders) if folders else ""
    inputs = [PredictionInput(path, _name(path, root), _is_video(path)) for path in unique]
    taken = Counter(item.picture_name.lower() for item in inputs)
    inputs = [
        replace(item, problem=f"another input's picture would have the name {item.picture_name}")
        if taken[item.picture_name.lower()] > 1
        else item
        for item in inputs
    ]
    return inputs + missing


def _expand(pattern: str, folders: list[str], excluded: str) -> tuple[list[str], str]:
    """Files of one pattern; folders that names are relative to are appended to `folders`."""
    if os.path.isdir(pattern):
        folders.append(os.path.abspath(pattern))
        found = list(_walk(pattern, excluded))
        return found, "" if found else "no image or video in this folder"
    if os.path.isfile(pattern):
        folders.append(os.path.dirname(os.path.abspath(pattern)))
        return [pattern], ""
    if os.path.exists(pattern):
        return [], file_problem(pattern, IMAGE)
    matches = sorted(glob.glob(pattern, recursive=True))
    found = []
    for match in matches:
        if os.path.isfile(match) and not os.path.realpath(match).startswith(excluded or "\0"):
            folders.append(os.path.dirname(os.path.abspath(match)))
            found.append(match)
        elif os.path.isdir(match) and not pattern.endswith("**"):
            found.extend(_expand(match, folders, excluded)[0])
    if found:
        return found, ""
    return [], "nothing matches" if glob.has_magic(pattern) else "no such file or folder"


def _walk(folder: str, excluded: str) -> Iterator[str]:
    for parent, subfolders, files in os.walk(folder, followlinks=False):
        subfolders[:] = sorted(
            s
            for s in subfolders
            if not s.startswith(".")
            and not (os.path.realpath(os.path.join(parent, s)) + os.sep).startswith(
                excluded or "\0"
            )
        )
        for name in sorted(files):
            suffix = os.path.splitext(name)[1].lower()
            path = os.path.join(parent, name)
            if name.startswith(".") or suffix not in IMAGE_SUFFIXES + VIDEO_SUFFIXES:
                continue
            # Also a dangling link or a pipe: the reader says what is wrong with it.
            yield path


def _name(path: str, root: str) -> str:
    return os.path.relpath(os.path.abspath(path), root).replace(os.sep, "/")


def _is_video(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES
