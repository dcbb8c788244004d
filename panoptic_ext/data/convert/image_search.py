"""Find the image files that labels name, and the files of a folder."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence

from panoptic_ext.data.datasets.file_search import IMAGE_EXTENSIONS
from panoptic_ext.errors import DatasetError, quoted

__all__ = ["ImageSearch", "files_below", "is_image_name", "relative_name"]


def files_below(folder: str, extensions: Iterable[str]) -> list[str]:
    """Paths of the files of a folder and its sub-folders, relative to it, sorted.

    Args:
        folder: it is searched; hidden files and folders, such as .git and ._a.jpg, are left out.
        extensions: in lower case, with their dot.
    """
    wanted = tuple(extensions)
    names = []
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        names += [
            relative_name(os.path.join(path, file), folder)
            for file in files
            if file.lower().endswith(wanted) and not file.startswith(".")
        ]
    return sorted(names)


def relative_name(path: str, folder: str) -> str:
    """A path relative to a folder, with "/" between its parts."""
    return os.path.relpath(path, folder).replace(os.sep, "/")


def is_image_name(name: str) -> bool:
    """Whether a file has the extension of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


class ImageSearch:
    """Finds the image that a label file belongs to, in a folder that is listed once.

    Names match whatever their way of writing accents in Unicode, and in upper or lower case
    extensions.
    """

    def __init__(self, root: str) -> None:
        """
        Args:
            root: folder of the images.

        Raises:
            DatasetError: there is no such folder.
        """
        if not os.path.isdir(root):
            raise DatasetError(
                f"the folder of the images is missing: {root}; name the right one (--image-root)"
            )
        self.root = root
        self.names: Sequence[str] = files_below(root, IMAGE_EXTENSIONS)
        self._by_name: dict[str, str] = {}
        self._by_stem: dict[str, list[str]] = {}
        self._by_base: dict[str, list[str]] = {}
        for name in self.names:
            self._by_name[_key(name)] = name
            self._by_stem.setdefault(_key(os.path.splitext(name)[0]), []).append(name)
            self._by_base.setdefault(_key(os.path.basename(name)), []).append(name)

    def find(self, name: str) -> str | None:
        """The image of a file name, relative to the root; None where there is none.

        Args:
            name: relative to the root. Another extension, or another folder where the base name
                is unique, is accepted.
        """
        key = _key(name.replace("\\", "/").removeprefix("./"))
        if key in self._by_name:
            return self._by_name[key]
        found = self.of_stem(os.path.splitext(key)[0])
        if found is None:
            same = self._by_base.get(os.path.basename(key), [])
            found = same[0] if len(same) == 1 else None
        return found

    def of_stem(self, stem: str) -> str | None:
        """The image with this relative path without extension; None where there is none.

        Raises:
            DatasetError: there are several.
        """
        found = self._by_stem.get(_key(stem), [])
        if len(found) > 1:
            raise DatasetError(
                f"{self.root} has {len(found)} images named {quoted(stem)}, {found[0]} and "
                f"{found[1]}; keep the one that the labels are of"
            )
        return found[0] if found else None

    def path(self, name: str) -> str:
        """The path of an image of this folder."""
        return os.path.join(self.root, *name.split("/"))


def _key(name: str) -> str:
    """What names have in common that differ in the form of their accents alone."""
    return unicodedata.normalize("NFC", name)
