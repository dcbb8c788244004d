"""The contact sheet: columns, rows of different sizes, captions, files."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from PIL import Image

from panoptic_ext.evaluation import PanopticEvaluator
from panoptic_ext.visualization import (
    SheetRow,
    contact_sheet,
    ground_truth_segments,
    pq_contact_sheet,
    save_picture,
)
from panoptic_ext.visualization.contact_sheet import _drawings, _without_label
from panoptic_ext.visualization.legend import class_numbers, legend
from tests.tiny import predictions as toy

METADATA = SimpleNamespace(
    thing_classes=["disc", "grass"],
    stuff_classes=["disc", "grass"],
    thing_colors=[(200, 30, 30), (30, 200, 30)],
    stuff_colors=[(200, 30, 30), (30, 200, 30)],
    isthing=(True, False),
)


def _row(height, width, caption=""):
    ids = np.full((height, width), 5)
    segments = [{"id": 5, "category_id": 1}]
    other = [{"id": 5, "category_id": 0}]
    image = np.full((height, width, 3), 90, np.uint8)
    return SheetRow(image, (ids, segments), (ids, other), caption)


def test_columns_and_rows_of_different_sizes(tmp_path):
    path = str(tmp_path / "sub" / "sheet.png")
    rows = [_row(20, 40, "one"), _row(60, 30, "x" * 400)]
    assert contact_sheet(rows, METADATA, path, title="title", cell_width=120) == path
    sheet = np.asarray(Image.open(path)).astype(int)
    assert sheet.shape[1] == 8 + 3 * 128
    image, truth, prediction = (sheet[120, 8 + 128 * i + 10] for i in range(3))
    assert (image == 90).all()
    assert truth[1] > truth[0] and prediction[0] > prediction[1]
    assert [p.name for p in tmp_path.glob("sub/*")] == ["sheet.png"]  # nothing left aside


def test_missing_prediction_and_no_rows(tmp_path):
    row = _row(20, 40)
    contact_sheet(
        [SheetRow(row.image, row.truth, None)], METADATA, str(tmp_path / "a.png"), cell_width=80
    )
    assert (np.asarray(Image.open(tmp_path / "a.png"))[80, 200] == 200).all()
    contact_sheet([], METADATA, str(tmp_path / "b.jpg"))
    assert Image.open(tmp_path / "b.jpg").format == "JPEG"


def test_the_legend_shows_the_classes_of_the_sheet_in_their_colours(tmp_path):
    names = [f"class {i}" for i in range(9)]
    colors = [(20 * i, 255 - 20 * i, 77) for i in range(9)]
    metadata = SimpleNamespace(
        thing_classes=names, stuff_classes=names, thing_colors=colors, stuff_colors=colors
    )
    strips = legend(metadata, {"class 2", "class 7"}, 600)
    assert len(strips) == 1 and strips[0].shape == (22, 600, 3)
    shown = {tuple(pixel) for pixel in strips[0].reshape(-1, 3).tolist()}
    assert shown & set(colors) == {colors[2], colors[7]}
    assert len(legend(metadata, set(names), 300)) == 3 and legend(metadata, set(), 600) == []
    assert class_numbers(metadata)["class 7"] == "8"
    row = _row(20, 40)
    with_legend = contact_sheet([row], METADATA, str(tmp_path / "a.png"), cell_width=80)
    without = contact_sheet(
        [SheetRow(row.image, None, None)], METADATA, str(tmp_path / "b.png"), cell_width=80
    )
    heights = [np.asarray(Image.open(path)).shape[0] for path in (with_legend, without)]
    assert heights[0] == heights[1] + 22


def test_segments_without_a_label_are_counted_below_their_picture(tmp_path):
    ids = np.arange(60 * 60).reshape(60, 60) + 1
    segments = [{"id": i + 1, "category_id": 0} for i in range(60 * 60)]
    image = np.zeros((60, 60, 3), np.uint8)
    (drawing,) = _drawings(SheetRow(image, (ids, segments[:50]), None), METADATA, 120)[:1]
    assert drawing is not None and drawing.num_segments == 50
    assert _without_label(drawing) == "49 of 50 segments without a label: too small"
    assert _without_label(None) == ""


def test_a_large_image_is_drawn_at_the_size_of_its_cell():
    image, ids = np.zeros((300, 900, 3), np.uint8), np.zeros((300, 900), int)
    ids[:, 450:] = 7
    row = SheetRow(image, (ids, [{"id": 7, "category_id": 1}]), None)
    (drawing,) = _drawings(row, METADATA, 120)[:1]
    assert drawing is not None and drawing.picture.shape == (40, 120, 3)
    assert (drawing.picture[:, :59] == 0).all() and drawing.picture[30, 70:, 1].all()


def test_ground_truth_of_a_record(tmp_path):
    ids = np.array([[0, 70000], [3, 3]])
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
    save_picture(str(tmp_path / "a.png"), rgb)
    record = {"pan_seg_file_name": str(tmp_path / "a.png"), "segments_info": [{"id": 3}]}
    found, segments = ground_truth_segments(record)
    assert (found == ids).all()
    segments[0]["id"] = 4
    assert record["segments_info"] == [{"id": 3}]


def test_worst_and_best_of_an_evaluation(tmp_path):
    name = toy.register(tmp_path, "visualization_test_pq_sheet")
    try:
        evaluator = PanopticEvaluator(name, keep_predictions=2)
        toy.run(evaluator, name, toy.imperfect())
        path = pq_contact_sheet(evaluator, name, str(tmp_path / "sheet" / "pq.png"), 2)
        assert pq_contact_sheet(evaluator, name, str(tmp_path / "one.png"), 1)
    finally:
        toy.unregister(name)
    full, one = Image.open(path), Image.open(tmp_path / "one.png")
    assert full.size[0] == one.size[0] and full.size[1] > one.size[1]
