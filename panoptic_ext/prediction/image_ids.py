"""Image ids of predictions: the data set's where it has the file, else the name of the file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence

from panoptic_ext.data.coco.json_file import ImageId

__all__ = ["choose_image_ids", "ids_of_files"]


def ids_of_files(paths: Mapping[str, str], id_of_file: Mapping[str, ImageId]) -> dict[str, ImageId]:
    """The data set's image id of each file that it has.

    Of a file and links to it, only the file itself gets the id.

    Args:
        paths: name -> path, through links or not.
        id_of_file: real path -> image id.

    Returns:
        name -> image id, for at most one name of each file.
    """
    real_paths = {name: os.path.realpath(path) for name, path in paths.items()}
    name_of_file: dict[str, str] = {}
    # Two images with one id would be an invalid JSON. Sorting puts links last.
    for name in sorted(paths, key=lambda name: os.path.islink(paths[name])):
        name_of_file.setdefault(real_paths[name], name)
    return {name: id_of_file[file] for file, name in name_of_file.items() if file in id_of_file}


def choose_image_ids(
    names: Sequence[str], known: Mapping[str, ImageId], earlier: Mapping[str, ImageId]
) -> dict[str, ImageId]:
    """Choose an id for each image; no two ids are equal, also when written as text.

    Args:
        names: distinct names of the images: relative paths with suffix.
        known: name -> id in a data set.
        earlier: name -> id that an earlier run used in the same results; these stay.

    Returns:
        name -> earlier id, else the known one, else the name without its suffix. If two ids
        collide, a made-up id gives way to the full file name; if both come from data sets, both
        do.
    """
    ids = {name: known.get(name, os.path.splitext(name)[0]) for name in names}
    ids.update(earlier)
    # Repeated, because a file name that replaces an id may collide with another id.
    while True:
        counts = Counter(map(str, ids.values()))
        clashing = [
            name
            for name, image_id in ids.items()
            if counts[str(image_id)] > 1 and name not in earlier and image_id != name
        ]
        if not clashing:
            return {name: ids[name] for name in names}
        for name in [name for name in clashing if name not in known] or clashing:
            ids[name] = name
