"""Lists of segments: every value as it was, names of files with anything in them, a second run."""

from __future__ import annotations

import csv
import io
import json
import tempfile

import numpy as np
from detectron2.data import Metadata
from hypothesis import example, given, settings
from hypothesis import strategies as st

from panoptic_ext.prediction.panoptic_result import PanopticResult
from panoptic_ext.prediction.segment_lists import SegmentLists

METADATA = Metadata(name="lists", thing_classes=['a "b", c', "sky"], isthing=(True, False))

keys = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


def result(seed: int) -> PanopticResult:
    ids = np.random.default_rng(seed).integers(0, 4, (5, 6))
    infos = [{"id": i, "category_id": i % 2, "score": 0.1 * i if i % 2 else None} for i in (1, 2)]
    return PanopticResult(ids, infos, METADATA)


@settings(max_examples=25)
@given(st.lists(keys, max_size=4, unique=True))
@example(["\r", "a\nb"])
def test_both_lists_say_the_same_and_a_second_run_goes_on(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        expected = {}
        for number, name in enumerate(names):
            lists = SegmentLists(folder)  # as a new run
            assert [lists.has(other) for other in names] == [other in expected for other in names]
            expected[name] = result(number)
            lists.add(name, expected[name])
            lists.commit(name)
        lists = SegmentLists(folder)
        lists.commit("a video of which all frames are there\0")
        images = json.loads(lists.json_text())
        table = list(csv.DictReader(io.StringIO(lists.csv_text(), newline="")))
        assert SegmentLists(folder, fresh=True).json_text() == "[]\n"
    assert [(image["file_name"], image["segments"]) for image in images] == [
        (name, one.to_dicts()) for name, one in expected.items()
    ]
    assert all((image["height"], image["width"]) == (5, 6) for image in images)
    flat = [(name, segment) for name, one in expected.items() for segment in one]
    for row, (name, segment) in zip(table, flat, strict=True):
        assert (row["file_name"], row["name"], row["isthing"]) == (
            name, segment.name, str(segment.isthing),
        )  # fmt: skip
        assert float(row["share"]) == segment.share and int(row["y1"]) == segment.box[3]
