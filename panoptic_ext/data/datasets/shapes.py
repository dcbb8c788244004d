"""shapes_panoptic_{train,val}: a generated data set for tutorials, tests and demonstrations.

It is generated at first use into a cache folder, as ordinary COCO panoptic files. The same
parameters give the same bytes, so the folder's name contains a hash of the parameters and of the
generator's version.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from typing import Any

from PIL import Image
from tqdm import tqdm

from panoptic_ext.data.coco.categories import category_entries
from panoptic_ext.data.coco.writer import PanopticWriter
from panoptic_ext.data.datasets.file_search import expand
from panoptic_ext.data.datasets.metadata import PanopticSource
from panoptic_ext.data.datasets.panoptic import register_source
from panoptic_ext.data.datasets.shapes_render import CATEGORIES, VERSION, render
from panoptic_ext.errors import ConfigError, DatasetError
from panoptic_ext.interruption import until_stopped

__all__ = ["SPLITS", "ShapesParams", "ShapesSource", "ensure_shapes", "register_shapes"]

SPLITS = ("train", "val")
logger = logging.getLogger(__name__)
_UNFINISHED = re.compile(rf"shapes_({'|'.join(SPLITS)})_[0-9a-f]{{16}}\..+")
# Seconds since the last write. Another process may have created its folder but not locked it yet.
_STALE_AFTER = 60


@dataclass(frozen=True)
class ShapesParams:
    """Size and content of the data set; sizes in pixels, counts in images or objects."""

    height: int = 128
    width: int = 160
    num_train: int = 400
    num_val: int = 60
    max_objects: int = 8
    seed: int = 0
    cache: str = ""

    def __post_init__(self) -> None:
        for name, least in (("height", 48), ("width", 48), ("num_train", 1), ("num_val", 1)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"DATASETS.SHAPES: {name} is {getattr(self, name)}, expected {least} or more"
                )
        if self.max_objects < 1 or self.seed < 0:
            raise ConfigError(
                f"DATASETS.SHAPES: MAX_OBJECTS is {self.max_objects} and SEED is {self.seed}, "
                "expected at least 1 and 0"
            )

    def count(self, split: str) -> int:
        """Return the number of images of a split."""
        return self.num_train if split == "train" else self.num_val

    def folder(self, split: str) -> str:
        """Return the folder of the split, which need not exist yet."""
        cache = self.cache or os.environ.get("PANOPTIC_EXT_CACHE") or "~/.cache/panoptic_ext"
        values = dataclasses.asdict(self)
        # `cache` does not change the pixels. The length of the other split must not cause this
        # split to be generated again.
        for name in ("cache", "num_train", "num_val"):
            del values[name]
        values.update(split=split, count=self.count(split), version=VERSION)
        key = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
        return os.path.join(os.path.abspath(expand(cache)), f"shapes_{split}_{key}")


@dataclass(frozen=True)
class ShapesSource(PanopticSource):
    """A split of shapes; generated when its files are first asked for."""

    params: ShapesParams = ShapesParams()
    split: str = "train"

    def locate(self) -> tuple[str, str, str]:
        folder = ensure_shapes(self.params, self.split)
        json, image_root, png_root = (
            os.path.join(folder, part) for part in (self.json, self.image_root, self.png_root)
        )
        return json, image_root, png_root


def register_shapes(params: ShapesParams | None = None) -> None:
    """Register both splits. Parameters other than before replace the earlier registration."""
    for split in SPLITS:
        source = ShapesSource(
            json=f"panoptic_{split}.json",
            image_root="images",
            png_root="panoptic",
            classes=CATEGORIES,
            params=params or ShapesParams(),
            split=split,
        )
        register_source(f"shapes_panoptic_{split}", source, replace=True)


def ensure_shapes(params: ShapesParams, split: str) -> str:
    """Return the folder of a split; generate it if it does not exist.

    Files are written to a temporary folder, which is then renamed. A folder that exists is
    therefore complete. If several processes generate it at once, the first to finish provides it.
    """
    folder = params.folder(split)
    if os.path.isdir(folder):
        return folder
    parent = os.path.dirname(folder)
    try:
        os.makedirs(parent, exist_ok=True)
        _remove_stale(parent)
        aside = tempfile.mkdtemp(prefix=os.path.basename(folder) + ".", dir=parent)
    except OSError as error:
        raise DatasetError(
            f"the shapes data set cannot be written to {parent} ({error}); set "
            "DATASETS.SHAPES.CACHE or the environment variable PANOPTIC_EXT_CACHE to a folder "
            "that can be written"
        ) from error
    lock = _lock(aside)
    try:
        logger.info("generating %d images of shapes (%s) in %s", params.count(split), split, folder)
        _write_split(params, split, aside)
        # mkdtemp creates a folder that only its owner may read; a cache may be shared.
        os.chmod(aside, 0o755)
        try:
            os.rename(aside, folder)
        except OSError:
            # Another process has renamed its folder first; the content is the same.
            if not os.path.isdir(folder):
                raise
    except OSError as error:
        raise DatasetError(
            f"writing the shapes data set to {parent} failed ({error}); free some space or set "
            "DATASETS.SHAPES.CACHE to another folder"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if lock is not None:
            os.close(lock)
    return folder


def _lock(folder: str) -> int | None:
    """Lock a folder; return a descriptor that holds the lock until it is closed.

    The end of the process releases the lock, too. None if another process holds the lock, the file
    system has no locks, or the folder does not exist.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_stale(parent: str) -> None:
    """Remove unfinished folders of killed processes: those that no process has locked."""
    for entry in list(os.scandir(parent)):
        if not _UNFINISHED.fullmatch(entry.name) or _age(entry.path) < _STALE_AFTER:
            continue
        lock = _lock(entry.path)
        if lock is not None:
            logger.info("removing %s, which an interrupted run left", entry.path)
            shutil.rmtree(entry.path, ignore_errors=True)
            os.close(lock)


def _age(folder: str) -> float:
    """Return the seconds since the last write into a folder; 0 if it does not exist."""
    try:
        with os.scandir(folder) as parts:
            times = [part.stat().st_mtime for part in parts]
        return time.time() - max([os.stat(folder).st_mtime, *times])
    except OSError:
        return 0.0


def _write_split(params: ShapesParams, split: str, folder: str) -> None:
    for name in ("images", "panoptic"):
        os.mkdir(os.path.join(folder, name))
    info: dict[str, Any] = {
        "info": {"description": "generated shapes", "version": str(VERSION)},
        "categories": category_entries(CATEGORIES),
        "images": [],
    }
    annotations = []
    writer = PanopticWriter(
        os.path.join(folder, f"panoptic_{split}.json"), os.path.join(folder, "panoptic"), error=None
    )
    numbers = tqdm(range(params.count(split)), desc=f"shapes {split}", unit="image", delay=2)
    how_to_go_on = (
        f"stopped after generating {{}} of {params.count(split)} images of shapes ({split}); they "
        "were removed, and the same command generates them anew"
    )
    for number in until_stopped(numbers, how_to_go_on.format):
        seed = (params.seed, SPLITS.index(split), number)
        image, ids, segments = render(params.height, params.width, params.max_objects, seed)
        stem = f"{number:06d}"
        Image.fromarray(image).save(os.path.join(folder, "images", stem + ".jpg"), quality=92)
        annotations.append(writer.add(number + 1, stem + ".png", ids, segments))
        info["images"].append(
            {
                "id": number + 1,
                "file_name": stem + ".jpg",
                "height": params.height,
                "width": params.width,
            }
        )
    writer.close(info, annotations)
