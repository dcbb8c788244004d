"""Find the images and videos to predict in the files, folders and globs that a user names."""

from __future__ import annotations

import glob
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from panoptic_ext.errors import listed
from panoptic_ext.prediction.results_folder import PNG_FOLDER
from panoptic_ext.regular_files import IMAGE, file_problem

__all__ = [
    "IMAGE_SUFFIXES",
    "SETTINGS_FILE",
    "VIDEO_SUFFIXES",
    "InputSearch",
    "PredictionInput",
    "find_inputs",
    "is_video",
    "search_inputs",
]

SETTINGS_FILE = "predict_settings.json"
"""The settings of the predictions in a folder. A folder that has this file holds results."""

_COMMON = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".jp2", ".png", ".tif", ".tiff", ".webp")
IMAGE_SUFFIXES = (*_COMMON, ".pbm", ".pgm", ".pnm", ".ppm")
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
_PICTURE_SUFFIXES = (".jpeg", ".jpg", ".png")
_RESULTS = "results of this tool"


@dataclass(frozen=True)
class PredictionInput:
    """One file to predict.

    Attributes:
        path: of the file.
        name: its path below the common folder of all inputs, with "/". It is unique, and the name
            of the picture where it ends like a JPEG or PNG.
        is_video: whether it is a video instead of an image.
        problem: why it cannot be used, or "".
    """

    path: str
    name: str
    is_video: bool = False
    problem: str = ""

    @property
    def picture_name(self) -> str:
        """Name of the drawn file: `name`, with a suffix added if its format cannot be written."""
        wanted = (".mp4",) if self.is_video else _PICTURE_SUFFIXES
        if self.name.lower().endswith(wanted):
            return self.name
        return self.name + wanted[-1]


@dataclass(frozen=True)
class InputSearch:
    """What `search_inputs` found.

    Attributes:
        inputs: every file once, in the order of the patterns; files of a folder are sorted. A
            pattern that matches nothing is an input with a `problem`.
        left_out: reason -> paths in the folders that are no inputs for this reason.
    """

    inputs: list[PredictionInput]
    left_out: dict[str, list[str]]

    def left_out_lines(self) -> list[str]:
        """A line for each reason: the number of paths, and the first few."""
        return [
            f"{len(paths)} left out, {reason}: {listed(paths, show=str)}"
            for reason, paths in self.left_out.items()
        ]


def find_inputs(patterns: Sequence[str], *, exclude: str = "") -> list[PredictionInput]:
    """The inputs of `search_inputs`."""
    return search_inputs(patterns, exclude=exclude).inputs


def search_inputs(patterns: Sequence[str], *, exclude: str = "") -> InputSearch:
    """Expand files, folders (with their sub-folders) and globs.

    Results of predict are no inputs: sub-folders that hold its settings are left out, and so are,
    in a folder that is output and input at once, the pictures that it drew of other files there.

    Args:
        patterns: as on a command line. A file that is named is an input whatever its suffix; of a
            folder, files with a known suffix of images or videos are, unless they are hidden.
        exclude: the folder that results go to.

    Returns:
        The inputs, one for each file name: a link and the file that it points to are two.
    """
    search = _Search(os.path.realpath(exclude) if exclude else "")
    paths: dict[str, str] = {}
    missing: list[PredictionInput] = []
    for pattern in patterns:
        files, problem = search.expand(os.path.expanduser(pattern))
        for path in files:
            paths.setdefault(os.path.abspath(path), path)
        if problem:
            missing.append(PredictionInput(pattern, pattern, problem=problem))
    root = os.path.commonpath(search.folders) if search.folders else ""
    inputs = [PredictionInput(path, _name(path, root), is_video(path)) for path in paths.values()]
    inputs = search.without_results(inputs)
    # In lower case: some file systems take a.jpg and A.JPG for one file.
    name_counts = Counter(item.picture_name.lower() for item in inputs)
    inputs = [
        replace(item, problem=f"another input's picture would have the name {item.picture_name}")
        if name_counts[item.picture_name.lower()] > 1
        else item
        for item in inputs
    ]
    left_out = {reason: list(dict.fromkeys(names)) for reason, names in search.left_out.items()}
    return InputSearch(inputs + missing, left_out)


class _Search:
    """Expands patterns to files.

    Attributes:
        folders: the folders of all files; names are relative to what they have in common.
        left_out: as in `InputSearch`.
    """

    def __init__(self, output: str) -> None:
        self.folders: list[str] = []
        self.left_out: dict[str, list[str]] = {}
        self._output = output

    def expand(self, pattern: str) -> tuple[list[str], str]:
        """The files of one pattern, and the reason where there are none, else ""."""
        if os.path.isdir(pattern):
            self.folders.append(os.path.abspath(pattern))
            files = list(self._walk(pattern))
            return files, "" if files else "no image or video in this folder"
        if os.path.isfile(pattern):
            self.folders.append(os.path.dirname(os.path.abspath(pattern)))
            return [pattern], ""
        if os.path.exists(pattern):
            return [], file_problem(pattern, IMAGE)
        files = []
        for match in sorted(glob.glob(pattern, recursive=True)):
            if self._is_below_results(match, _fixed_part(pattern)):
                continue
            if os.path.isfile(match):
                self.folders.append(os.path.dirname(os.path.abspath(match)))
                files.append(match)
            # "**" matches the files of all sub-folders by itself.
            elif os.path.isdir(match) and not pattern.endswith("**"):
                files.extend(self.expand(match)[0])
        if files:
            return files, ""
        return [], "nothing matches" if glob.has_magic(pattern) else "no such file or folder"

    def without_results(self, inputs: list[PredictionInput]) -> list[PredictionInput]:
        """Leave out the pictures that an earlier run made of other inputs, in the same folder."""
        folders = {self._output, *self.folders}
        folders = {folder for folder in folders if folder and _holds_results(folder)}
        pictures = {
            os.path.realpath(os.path.join(folder, *item.picture_name.split("/")))
            for folder in folders
            for item in inputs
            if item.picture_name != item.name
        }
        kept = []
        for item in inputs:
            if os.path.realpath(item.path) in pictures:
                self._leave_out(_RESULTS, item.path)
            else:
                kept.append(item)
        return kept

    def _walk(self, folder: str) -> Iterator[str]:
        is_output = _holds_results(folder)
        for parent, subfolders, files in os.walk(folder, followlinks=False):
            # The label PNGs of earlier results are in a sub-folder without settings of its own.
            png_folder = PNG_FOLDER if is_output and parent == folder else ""
            subfolders[:] = [s for s in sorted(subfolders) if self._enters(parent, s, png_folder)]
            for name in sorted(files):
                path = os.path.join(parent, name)
                if name.startswith("."):
                    continue
                # A dangling link or a pipe, too: predicting it fails with the reason.
                if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES:
                    yield path
                # The JSON files of earlier results are not worth a line.
                elif not (is_output and parent == folder):
                    self._leave_out("neither image nor video by their suffix", path)

    def _enters(self, parent: str, name: str, png_folder: str) -> bool:
        path = os.path.join(parent, name)
        if name.startswith("."):
            return False
        is_result = os.path.realpath(path) == self._output or _holds_results(path)
        if is_result or name == png_folder:
            self._leave_out(_RESULTS, path)
            return False
        if os.path.islink(path):
            self._leave_out("linked folders (name them as --input)", path)
            return False
        return True

    def _is_below_results(self, path: str, base: str) -> bool:
        """Whether `path` is in a folder of results, or is one, that lies below `base`."""
        base, folder = os.path.abspath(base), os.path.abspath(path)
        while len(folder) > len(base):
            if os.path.realpath(folder) == self._output or _holds_results(folder):
                self._leave_out(_RESULTS, os.path.relpath(folder))
                return True
            folder = os.path.dirname(folder)
        return False

    def _leave_out(self, reason: str, path: str) -> None:
        self.left_out.setdefault(reason, []).append(path)


def _holds_results(folder: str) -> bool:
    return os.path.isfile(os.path.join(folder, SETTINGS_FILE))


def _fixed_part(pattern: str) -> str:
    """The leading folders of a glob, up to the first part with a wildcard."""
    parts = pattern.split(os.sep)
    plain = list(itertools.takewhile(lambda part: not glob.has_magic(part), parts[:-1]))
    return os.sep.join(plain) or (os.sep if pattern.startswith(os.sep) else os.curdir)


def _name(path: str, root: str) -> str:
    return os.path.relpath(os.path.abspath(path), root).replace(os.sep, "/")


def is_video(path: str) -> bool:
    """Whether the suffix is that of a video."""
    return os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES
