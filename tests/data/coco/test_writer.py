"""The one writer of COCO panoptic results: what it writes is read back, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from panoptic_ext.data import Category, read_id_map
from panoptic_ext.data.coco.categories import category_entries
from panoptic_ext.data.coco.panoptic_files import PanopticFiles
from panoptic_ext.data.coco.runs import runs_from_ids
from panoptic_ext.data.coco.writer import PanopticWriter, check_png_names
from panoptic_ext.errors import EvaluationError

CATEGORIES = (Category(30, "disc", True, (1, 2, 3)), Category(7, "grass", False, (4, 5, 6)))


def label_map() -> np.ndarray:
    ids = np.zeros((4, 6), np.int32)
    ids[1:3, 1:5] = 70000
    ids[0] = 4
    return ids


SEGMENTS = [{"id": 70000, "category_id": 30, "score": 0.25}, {"id": 4, "category_id": 7}]


@pytest.mark.parametrize("encode", [lambda ids: ids, runs_from_ids], ids=["map", "runs"])
def test_written_results_are_read_back(tmp_path: Path, encode) -> None:
    writer = PanopticWriter.of_predictions(str(tmp_path / "out"))
    second = writer.add("b", "sub/b.png", encode(label_map()), [])
    first = writer.add("a", "sub/a.png", encode(label_map()), SEGMENTS)
    writer.close({"categories": category_entries(CATEGORIES)}, [first, second])

    files = PanopticFiles(writer.json_path, writer.png_root)
    assert list(files.annotations) == ["a", "b"]
    assert (files.runs(files.annotations["b"]).dense() == label_map()).all()
    assert first["segments_info"] == [
        {"id": 70000, "category_id": 30, "score": 0.25, "iscrowd": 0, "area": 8,
         "bbox": [1, 1, 4, 2]},
        {"id": 4, "category_id": 7, "iscrowd": 0, "area": 6, "bbox": [0, 0, 6, 1]},
    ]  # fmt: skip
    order = ["id", "category_id", "area", "bbox", "iscrowd", "score"]
    assert list(first["segments_info"][0]) == order
    assert files.annotations["a"].segments_info == first["segments_info"]
    assert (read_id_map(tmp_path / "out/panoptic_predictions/sub/a.png") == label_map()).all()
    assert [c._asdict() for c in CATEGORIES] == [
        {**c, "isthing": bool(c["isthing"]), "color": tuple(c["color"])}
        for c in json.loads(Path(writer.json_path).read_text())["categories"]
    ]


def test_a_failed_write_is_the_given_error_or_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for error, kind in ((EvaluationError, EvaluationError), (None, OSError)):
        writer = PanopticWriter("unused.json", str(tmp_path / "file" / "pngs"), error=error)
        with pytest.raises(kind):
            writer.add(1, "1.png", label_map(), SEGMENTS)


def test_two_images_never_share_a_png() -> None:
    check_png_names(["a/1.png", "b/1.png"], "truth.json")
    with pytest.raises(EvaluationError, match=r"truth.json: two images have one PNG file_name"):
        check_png_names(["a/1.png", "a/1.jpg"], "truth.json")
