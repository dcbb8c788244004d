"""Write small label files, convert them and read the results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from panoptic_ext.data.coco.label_png import read_id_map
from panoptic_ext.data.convert import (
    ClassChoice,
    ConversionOptions,
    Converted,
    SourceInputs,
    convert,
    open_source,
)
from panoptic_ext.data.image_files import EXIF_ORIENTATION

HEIGHT, WIDTH = 12, 16


def picture(path: Path, size: tuple[int, int] = (HEIGHT, WIDTH), *, turn: int = 1) -> Path:
    """An image file of (height, width) stored pixels and an EXIF orientation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (size[1], size[0]), (90, 120, 60))
    exif = image.getexif()
    if turn != 1:
        exif[EXIF_ORIENTATION] = turn
    image.save(path, exif=exif)
    return path


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def box(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    """A polygon; with whole numbers it covers the pixels x0..x1 - 1 and y0..y1 - 1."""
    return [x0, y0, x1, y0, x1, y1, x0, y1]


class Result(NamedTuple):
    """A converted data set as its files hold it.

    `maps` is {image: array of texts like "car 3"}; void is "", a crowd ends with " crowd". Things
    are numbered by the order of their first pixels, stuff has no number.
    """

    converted: Converted
    content: dict[str, Any]
    maps: dict[str, np.ndarray]

    def rows(self, name: str) -> list[str]:
        """A map as text: the first letter of each pixel's class, "." for void."""
        return ["".join(text[:1] or "." for text in row) for row in self.maps[name]]


def converted(
    source_name: str,
    path: Path,
    output: Path,
    *,
    inputs: dict[str, Any] | None = None,
    things: str | None = None,
    **options: Any,
) -> Result:
    """Convert labels to COCO panoptic; `things` as on the command line."""
    source = open_source(source_name, SourceInputs(str(path), **(inputs or {})))
    if things is not None:
        options["choice"] = ClassChoice(things=tuple(filter(None, things.split(","))))
    done = convert(source, str(output), ConversionOptions(**{"num_threads": 2, **options}))
    return Result(done, *read_result(output))


def read_result(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The JSON of a result and the maps of its images."""
    content = json.loads((folder / "panoptic.json").read_text(encoding="utf-8"))
    images = {image["id"]: image for image in content["images"]}
    categories = {c["id"]: c for c in content["categories"]}
    maps = {}
    for annotation in content["annotations"]:
        ids = read_id_map(folder / "panoptic" / annotation["file_name"])
        image = images[annotation["image_id"]]
        assert ids.shape == (image["height"], image["width"])
        segments = {
            s["id"]: (categories[s["category_id"]], s["iscrowd"])
            for s in annotation["segments_info"]
        }
        maps[image["file_name"]] = described(ids, segments)
    return content, maps


def described(ids: np.ndarray, segments: dict[int, tuple[dict[str, Any], int]]) -> np.ndarray:
    """(H, W) texts, as in `Result.maps`."""
    texts = {0: ""}
    counts: dict[str, int] = {}
    values, first = np.unique(ids, return_index=True)
    for value in values[np.argsort(first)].tolist():
        if value == 0:
            continue
        category, crowd = segments[value]
        name = category["name"]
        if not category["isthing"]:
            texts[value] = name
            continue
        counts[name] = counts.get(name, 0) + 1
        texts[value] = f"{name} {counts[name]}" + " crowd" * crowd
    return np.vectorize(texts.__getitem__, otypes=[object])(ids)
