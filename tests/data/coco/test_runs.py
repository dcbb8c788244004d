"""Runs of label maps: they describe the map, and count what pixels count."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.data.coco.runs import find_runs, overlaps, runs_from_ids, runs_from_rgb
from tests.data.coco.test_id_map import SMALL_MAPS


@given(SMALL_MAPS, st.booleans())
def test_runs_describe_the_map(ids: np.ndarray, split_rows: bool) -> None:
    runs = find_runs(ids, split_rows=split_rows)
    assert np.array_equal(np.repeat(runs.ids, runs.lengths), ids.reshape(-1))
    assert np.array_equal(runs.starts, np.cumsum(runs.lengths) - runs.lengths)
    if split_rows and ids.size:
        width = ids.shape[1]
        assert ((runs.starts % width) + runs.lengths <= width).all()
    elif not split_rows:
        assert (runs.ids[1:] != runs.ids[:-1]).all()


def test_rows_are_split_within_blocks(monkeypatch):
    ids = np.random.default_rng(0).integers(0, 2, (9, 7))
    whole = find_runs(ids, split_rows=True)
    monkeypatch.setattr("panoptic_ext.data.coco.runs._BLOCK", 5)
    for runs in (find_runs(ids, split_rows=True), find_runs(ids).split_rows()):
        assert (runs.starts == whole.starts).all() and (runs.ids == whole.ids).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 40, 300_000]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_counts_of_runs_equal_counts_of_pixels(seed: int, num_ids: int, noisy: bool):
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 40)), int(rng.integers(1, 40)))
    maps = []
    for _ in range(2):
        ids = rng.integers(0, num_ids, shape).astype(np.int32)
        if not noisy:
            ids = np.repeat(np.repeat(ids, 5, 0), 9, 1)
        maps.append(ids)
    runs = [runs_from_ids(ids) for ids in maps]
    for ids, run in zip(maps, runs, strict=True):
        assert (run.dense() == ids).all()
        rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
        from_rgb = runs_from_rgb(rgb)
        assert (from_rgb.starts == run.starts).all() and (from_rgb.ids == run.ids).all()
        names, areas = run.areas()
        for name, area, (x, y, w, h) in zip(names[:5], areas, run.boxes(names[:5]), strict=False):
            rows, columns = np.nonzero(ids == name)
            assert (area, x, y) == (len(rows), columns.min(), rows.min())
            assert (w, h) == (np.ptp(columns) + 1, np.ptp(rows) + 1)
    found = overlaps(*runs)
    pairs, pixels = np.unique(
        maps[0].astype(np.int64).reshape(-1) * 2**24 + maps[1].reshape(-1), return_counts=True
    )
    assert (found.gt_ids * 2**24 + found.pred_ids == pairs).all()
    assert (found.pixels == pixels).all()


def test_tables_and_sorting_count_alike(monkeypatch):
    rng = np.random.default_rng(0)
    runs = [runs_from_ids(np.repeat(rng.integers(0, 9, (40, 4)), 20, 1)) for _ in range(2)]
    table = overlaps(*runs)
    monkeypatch.setattr("panoptic_ext.data.coco.runs._MAX_TABLE", 0)
    for name in ("gt_ids", "pred_ids", "pixels"):
        assert (getattr(table, name) == getattr(overlaps(*runs), name)).all()


def test_runs_of_large_maps_cross_blocks():
    rng = np.random.default_rng(0)
    ids = np.repeat(rng.integers(0, 9, (700, 100)), 10, 1).astype(np.int32)
    rgb = np.stack([ids, 0 * ids, 0 * ids], -1).astype(np.uint8)
    assert (runs_from_ids(ids).dense() == ids).all()
    assert (runs_from_rgb(rgb).dense() == ids).all()
    assert len(runs_from_ids(np.zeros_like(ids)).starts) == 1
