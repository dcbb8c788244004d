"""Area and box of segments: exact against a naive count, and taken by Detectron2's own tools."""

from __future__ import annotations

import copy
import json
import sys
from types import SimpleNamespace

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.utils.visualizer import Visualizer
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.data import id_to_rgb
from panoptic_ext.postprocessing import with_extents
from tests.fusion.naive_extents import check_extents


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 9),
    st.integers(0, 9),
    st.lists(st.integers(-1, 2**24), min_size=1, max_size=5, unique=True),
    st.randoms(use_true_random=False),
)
def test_extents_are_those_of_a_naive_count(height, width, values, random):
    """Ids of any size and order, void, ids without a pixel, empty maps."""
    ids = np.array([random.choice([0, *values]) for _ in range(height * width)], np.int64)
    panoptic_seg = torch.from_numpy(ids.reshape(height, width))
    segments = [{"id": value, "category_id": 3, "area": -1} for value in values]
    before = copy.deepcopy(segments)
    same, measured = with_extents(panoptic_seg, segments)
    assert same is panoptic_seg and segments == before
    assert [segment["id"] for segment in measured] == values
    check_extents(panoptic_seg, measured)


def test_a_map_of_other_strides_is_measured_as_it_is_seen():
    panoptic_seg = torch.tensor([[1, 1, 2], [0, 2, 2]], dtype=torch.int32).t()
    _, segments = with_extents(panoptic_seg, [{"id": 2}, {"id": 1}])
    assert segments == [
        {"id": 2, "area": 3, "bbox": [0, 1, 2, 2]},
        {"id": 1, "area": 2, "bbox": [0, 0, 1, 2]},
    ]


def test_no_segment_at_all():
    assert with_extents(torch.zeros(3, 4, dtype=torch.int32), [])[1] == []


def test_detectron2_draws_and_writes_segments_with_extents(tmp_path, monkeypatch):
    name = "fake_extents_for_detectron2"
    labels = torch.zeros(30, 40, dtype=torch.int32)
    labels[:, :20], labels[5:15, 5:15] = 1, 2
    segments = [
        {"id": 2, "isthing": True, "category_id": 0, "score": 0.9},
        {"id": 1, "isthing": False, "category_id": 1},
    ]
    panoptic_seg = with_extents(labels, segments)
    # All that `process` wants of panopticapi, which need not be installed.
    utils = SimpleNamespace(id2rgb=id_to_rgb)
    monkeypatch.setitem(sys.modules, "panopticapi", SimpleNamespace(utils=utils))
    monkeypatch.setitem(sys.modules, "panopticapi.utils", utils)
    DatasetCatalog.register(name, list)
    metadata = MetadataCatalog.get(name).set(
        thing_classes=["disc", "grass"],
        stuff_classes=["disc", "grass"],
        thing_dataset_id_to_contiguous_id={7: 0},
        stuff_dataset_id_to_contiguous_id={9: 1},
    )
    try:
        image = np.zeros((30, 40, 3), np.uint8)
        drawn = Visualizer(image, metadata).draw_panoptic_seg_predictions(
            *copy.deepcopy(panoptic_seg)  # it writes into what it draws
        )
        evaluator = COCOPanopticEvaluator(name, str(tmp_path))
        evaluator.reset()
        evaluator.process([{"file_name": "a.jpg", "image_id": 1}], [{"panoptic_seg": panoptic_seg}])
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert drawn.get_image().any()
    (prediction,) = evaluator._predictions
    disc, grass = json.loads(json.dumps(prediction["segments_info"]))
    assert (disc["category_id"], disc["area"], disc["bbox"]) == (7, 100, [5, 5, 10, 10])
    assert (grass["category_id"], grass["area"], grass["bbox"]) == (9, 500, [0, 0, 20, 30])
