from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from panoptic_ext.data import check_panoptic, get_records, num_classes, thing_ids
from panoptic_ext.data.coco.runs import find_runs
from panoptic_ext.data.datasets import shapes
from panoptic_ext.data.datasets.shapes import ShapesParams, ensure_shapes, register_shapes
from panoptic_ext.data.datasets.shapes_render import CATEGORIES, render
from panoptic_ext.errors import ConfigError, DatasetError
from panoptic_ext.interruption import Interrupted


def small(cache: Path, **changes: int) -> ShapesParams:
    values = {"height": 64, "width": 80, "num_train": 4, "num_val": 3, **changes}
    return ShapesParams(cache=str(cache), **values)


def fingerprint(folder: str) -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*.*")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def test_same_parameters_same_bytes(tmp_path: Path) -> None:
    first = ensure_shapes(small(tmp_path / "a"), "train")
    second = ensure_shapes(small(tmp_path / "b"), "train")
    assert os.path.basename(first) == os.path.basename(second)
    assert fingerprint(first) == fingerprint(second)


def test_an_image_does_not_depend_on_the_others(tmp_path: Path) -> None:
    few = ensure_shapes(small(tmp_path, num_train=2), "train")
    more = ensure_shapes(small(tmp_path), "train")
    assert few != more
    for name in ("images/000001.jpg", "panoptic/000001.png"):
        assert Path(few, name).read_bytes() == Path(more, name).read_bytes()


@pytest.mark.parametrize("change", [{"seed": 1}, {"height": 66}, {"max_objects": 3}])
def test_other_parameters_other_folder(tmp_path: Path, change: dict[str, int]) -> None:
    assert small(tmp_path).folder("train") != small(tmp_path, **change).folder("train")


def test_valid_by_the_data_set_check(tmp_path: Path) -> None:
    register_shapes(small(tmp_path, num_train=12))
    for split in ("train", "val"):
        assert check_panoptic(f"shapes_panoptic_{split}") == []


def test_classes_need_no_files(tmp_path: Path) -> None:
    register_shapes(small(tmp_path))
    assert num_classes("shapes_panoptic_train") == len(CATEGORIES)
    assert len(thing_ids("shapes_panoptic_train")) >= 4
    assert not os.listdir(tmp_path)


def test_made_on_first_use_and_read_afterwards(tmp_path: Path) -> None:
    register_shapes(small(tmp_path))
    assert len(get_records("shapes_panoptic_val")) == 3
    (folder,) = tmp_path.iterdir()
    before = folder.stat().st_mtime_ns
    metadata = MetadataCatalog.get("shapes_panoptic_val")
    assert metadata.panoptic_json == str(folder / "panoptic_val.json")
    assert len(DatasetCatalog.get("shapes_panoptic_val")) == 3
    assert folder.stat().st_mtime_ns == before


def test_registered_again_with_other_parameters(tmp_path: Path) -> None:
    register_shapes(small(tmp_path))
    register_shapes(small(tmp_path))
    register_shapes(small(tmp_path, num_val=2))
    assert len(get_records("shapes_panoptic_val")) == 2


def _make(cache: str, ready: object) -> None:
    ready.wait()
    ensure_shapes(small(Path(cache)), "train")


def test_two_processes_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(3)
    workers = [context.Process(target=_make, args=(str(tmp_path), ready)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert os.listdir(tmp_path) == [os.path.basename(small(tmp_path).folder("train"))]
    alone = ensure_shapes(small(tmp_path / "alone"), "train")
    assert fingerprint(alone) == fingerprint(small(tmp_path).folder("train"))


def test_leftovers_of_killed_runs_are_removed(tmp_path: Path) -> None:
    name = os.path.basename(small(tmp_path).folder("train"))
    stale, fresh, locked = (tmp_path / f"{name}.{end}" for end in ("stale", "fresh", "locked"))
    others = [tmp_path / "other.stale", tmp_path / "shapes_train_0123456789abcdef"]
    for folder in (stale, fresh, locked, *others):
        (folder / "images").mkdir(parents=True)
        if folder is not fresh:
            os.utime(folder / "images", (1, 1))
            os.utime(folder, (1, 1))
    descriptor = os.open(locked, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    ensure_shapes(small(tmp_path), "train")
    os.close(descriptor)
    expected = {name, fresh.name, locked.name, *(other.name for other in others)}
    assert set(os.listdir(tmp_path)) == expected


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(DatasetError, match=r"DATASETS\.SHAPES\.CACHE"):
        ensure_shapes(small(blocked), "train")


@pytest.mark.parametrize("change", [{"height": 8}, {"num_val": 0}, {"max_objects": 0}])
def test_impossible_parameters(tmp_path: Path, change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"DATASETS\.SHAPES"):
        small(tmp_path, **change)


def test_json_has_what_other_tools_need(tmp_path: Path) -> None:
    folder = ensure_shapes(small(tmp_path), "val")
    info = json.loads(Path(folder, "panoptic_val.json").read_text())
    segment = info["annotations"][0]["segments_info"][0]
    assert set(segment) == {"id", "category_id", "iscrowd", "area", "bbox"}
    assert {c["isthing"] for c in info["categories"]} == {0, 1}


def test_pictures_have_what_they_promise() -> None:
    things, stuff, crowds, void = set(), set(), 0, []
    kinds = {c.id: c.isthing for c in CATEGORIES}
    for number in range(40):
        image, ids, segments = render(128, 160, 8, (0, 0, number))
        assert image.shape == (128, 160, 3)
        used = {s["category_id"] for s in segments}
        things |= {c for c in used if kinds[c]}
        stuff |= {c for c in used if not kinds[c]}
        crowds += sum(s["iscrowd"] for s in segments)
        void.append((ids == 0).mean())
        assert sum(kinds[s["category_id"]] for s in segments) <= 9
        assert set(np.unique(ids).tolist()) - {0} == {s["id"] for s in segments}
        assert _borders_are_void(ids)
    assert len(things) == 4
    assert len(stuff) == 3
    assert 1 <= crowds <= 12
    assert 0.01 < np.mean(void) < 0.15


def _borders_are_void(ids: np.ndarray) -> bool:
    """No two segments touch within a row."""
    runs = find_runs(ids, split_rows=True)
    touching = (runs.starts[1:] % ids.shape[1]) != 0
    return not (touching & (runs.ids[1:] != 0) & (runs.ids[:-1] != 0)).any()


def test_a_signal_ends_the_generation_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = shapes.render

    def interrupted(*args: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return made(*args)

    monkeypatch.setattr(shapes, "render", interrupted)
    params = small(tmp_path, num_train=5)
    with pytest.raises(Interrupted, match=r"after generating 1 of 5 images of shapes \(train\)"):
        shapes.ensure_shapes(params, "train")
    assert not list(tmp_path.iterdir())
