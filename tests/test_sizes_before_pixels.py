"""A PNG whose header gives another size than the JSON is refused before it is unpacked.

The files here have a header alone: to unpack one would fail with another error, "truncated".
"""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from panoptic_ext.combine.images import ImageList
from panoptic_ext.combine.inputs import SemanticFolder
from panoptic_ext.data import PanopticDatasetMapper, check_panoptic
from panoptic_ext.data.coco.panoptic_files import PanopticFiles
from panoptic_ext.errors import DatasetError, EvaluationError
from panoptic_ext.evaluation.compare_files import evaluate_files
from tests.tiny.panoptic_dataset import TinyDataset


@pytest.fixture
def tiny(tmp_path: Path) -> TinyDataset:
    return TinyDataset(tmp_path)


def _header_of(path: Path, *, kind: int = 2) -> None:
    """A PNG that claims 9000 x 8000 (height x width) pixels and has none; kind 2: RGB, 0: grey."""
    size = (8000).to_bytes(4, "big") + (9000).to_bytes(4, "big")
    chunks = {b"IHDR": size + bytes([8, kind, 0, 0, 0]), b"IDAT": b"", b"IEND": b""}
    parts = [
        len(c).to_bytes(4, "big") + name + c + zlib.crc32(name + c).to_bytes(4, "big")
        for name, c in chunks.items()
    ]
    path.write_bytes(b"".join([b"\x89PNG\r\n\x1a\n", *parts]))


def _evaluate(tiny: TinyDataset, truth: Path, predictions: Path) -> None:
    evaluate_files(str(tiny.json), str(truth), str(tiny.json), str(predictions), num_threads=0)


def _copy(tiny: TinyDataset) -> Path:
    folder = tiny.root / "predicted"
    folder.mkdir()
    for path in tiny.pngs.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_as_prediction_it_is_compared_with_the_truth(tiny: TinyDataset) -> None:
    predictions = _copy(tiny)
    _header_of(predictions / "1.png")

    with pytest.raises(EvaluationError, match=r"1: the prediction is 9000 x 8000, .* 24 x 32 "):
        _evaluate(tiny, tiny.pngs, predictions)


@pytest.mark.parametrize("with_sizes", [True, False])
def test_as_truth_it_is_compared_with_the_json_or_else_the_prediction(
    tiny: TinyDataset, with_sizes: bool
) -> None:
    predictions = _copy(tiny)
    _header_of(tiny.pngs / "1.png")
    if not with_sizes:
        del tiny.info["images"]
        tiny.save()

    with pytest.raises(EvaluationError, match=r"9000 x 8000.*24 x 32|24 x 32.*9000 x 8000"):
        _evaluate(tiny, tiny.pngs, predictions)


def test_the_check_of_the_data_set_lists_label_map_and_image(tiny: TinyDataset) -> None:
    _header_of(tiny.pngs / "1.png")
    _header_of(tiny.images / "2.png")

    problems = check_panoptic(tiny.source(), workers=1)

    assert {problem.kind for problem in problems} == {"size-mismatch"}
    assert all("9000 x 8000" in problem.message for problem in problems)


def test_the_mapper_refuses_label_map_and_image(tiny: TinyDataset) -> None:
    _header_of(tiny.pngs / "1.png")
    _header_of(tiny.images / "2.png")
    mapper = PanopticDatasetMapper(True, augmentations=[], image_format="RGB")

    for record, words in zip(
        tiny.load(), (r"the image .* is 24 x 32", "the JSON says"), strict=True
    ):
        with pytest.raises(DatasetError, match=r"is 9000 x 8000 \(height x width\), " + words):
            mapper(record)


def test_a_semantic_map_to_combine_is_compared_with_its_image(tiny: TinyDataset) -> None:
    images = ImageList.of_json(str(tiny.json))
    _header_of(tiny.pngs / "1.png", kind=0)
    folder = SemanticFolder(str(tiny.pngs), images)

    with pytest.raises(EvaluationError, match=r"1.png is 9000 x 8000 .*, image 1 is 24 x 32"):
        folder.labels(images.images[0])


def test_truth_of_other_evaluators_is_compared_with_its_record(tiny: TinyDataset) -> None:
    _header_of(tiny.pngs / "1.png")
    files = PanopticFiles(str(tiny.json), str(tiny.pngs))

    with pytest.raises(EvaluationError, match=r"is 9000 x 8000 .*panoptic.json says 24 x 32"):
        files.runs(next(iter(files.annotations.values())))
