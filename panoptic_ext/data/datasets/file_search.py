"""Find files: folder listings that are read once, search paths, images of any extension."""

from __future__ import annotations

import os
from collections.abc import Sequence

from panoptic_ext.errors import DatasetError, quoted

__all__ = ["IMAGE_EXTENSIONS", "FolderIndex", "expand", "search"]

IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm"})
_PROJECT_ROOT = os.path.dirname(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
)


class FolderIndex:
    """Cache of folder listings under a root: each folder is listed once.

    A folder may hold thousands of images; one listing replaces a request for each of them.
    """

    def __init__(self, root: str):
        self.root = root
        self._real_root = os.path.realpath(root)
        self._folders: dict[str, tuple[set[str], dict[str, list[str]]]] = {}

    def has(self, name: str) -> bool:
        """Whether the file `name`, relative to the root, exists."""
        folder, base = os.path.split(name)
        return base in self._listing(folder)[0]

    def find_image(self, name: str, *, exclude: str = "") -> str | None:
        """Return `name` if it exists, else a file of its stem with an image extension, else None.

        Args:
            name: relative to the root.
            exclude: path of a file that is not the image, such as its label map.
        """
        folder, base = os.path.split(name)
        names, stems = self._listing(folder)
        same = [base] if base in names else []
        # `base` may itself lack an extension and contain a dot, so it is tried as a stem as well.
        same += stems.get(base, []) + stems.get(os.path.splitext(base)[0], [])
        if exclude and same and os.path.basename(exclude) in same:
            # Two paths may lead to the same folder, so real paths are compared. This accesses the
            # file system and is therefore done only if the base names match.
            label_folder = os.path.realpath(os.path.dirname(exclude))
            if label_folder == os.path.normpath(os.path.join(self._real_root, folder)):
                same = [n for n in same if n != os.path.basename(exclude)]
        return os.path.join(folder, same[0]) if same else None

    def _listing(self, folder: str) -> tuple[set[str], dict[str, list[str]]]:
        if folder not in self._folders:
            try:
                names = sorted(os.listdir(os.path.join(self.root, folder)))
            except OSError:
                names = []
            stems: dict[str, list[str]] = {}
            for name in names:
                stem, extension = os.path.splitext(name)
                if extension.lower() in IMAGE_EXTENSIONS:
                    stems.setdefault(stem, []).append(name)
            self._folders[folder] = (set(names), stems)
        return self._folders[folder]


def expand(path: str | os.PathLike) -> str:
    """`path` with ~ and environment variables expanded."""
    return os.path.expanduser(os.path.expandvars(os.fspath(path)))


def search(path: str, folders: Sequence[str], *, what: str) -> str:
    """Find a file or folder of a data set.

    Args:
        path: as given by the user. An absolute one is returned as it is.
        folders: folders in which a relative path is searched, after $DETECTRON2_DATASETS. A
            relative folder is resolved against the current folder, then the project's.
        what: description of the path for the message, such as "image root".

    Raises:
        DatasetError: the path exists in none of these folders; the message lists them.
    """
    path = expand(path)
    if os.path.isabs(path):
        return path
    places = []
    root = os.environ.get("DETECTRON2_DATASETS")
    if root:
        places.append(os.path.abspath(expand(root)))
    for folder in map(expand, folders):
        places += [os.path.abspath(folder), os.path.normpath(os.path.join(_PROJECT_ROOT, folder))]
    places.append(os.getcwd())
    candidates = list(dict.fromkeys(os.path.join(place, path) for place in places))
    for candidate in candidates:
        if os.path.exists(candidate):
            return candidate
    listed = "\n".join(f"  - {candidate}" for candidate in candidates)
    raise DatasetError(
        f"{what} {quoted(path)} was not found. Looked at\n{listed}\n"
        "Put the data at one of these places, set the environment variable DETECTRON2_DATASETS "
        "or DATASETS.SEARCH_PATH to the folder that holds it, or give an absolute path."
    )
