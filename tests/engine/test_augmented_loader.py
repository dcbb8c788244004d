"""All that draws at random in a training's samples, together: equal for any workers and resume."""

from __future__ import annotations

import gc
import itertools
import weakref
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from panoptic_ext.data import get_records
from panoptic_ext.data.datasets.metadata import PanopticSource
from panoptic_ext.data.datasets.panoptic import register_source
from panoptic_ext.data.donors import Donors, Drawn
from panoptic_ext.engine import loader as loader_module
from panoptic_ext.engine.loader import TrainLoader, build_train_loader
from panoptic_ext.engine.samplers import random_subset
from panoptic_ext.errors import ConfigError, DatasetError
from tests.tiny.panoptic_dataset import TinyDataset
from tests.tiny.training import tiny_cfg

pytestmark = pytest.mark.usefixtures("clean_catalogs")

NAME, NUMBER, SEED = "augmented_loader_train", 10, 4


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    """Copy-paste, crops around things, repeats, a subset and unreadable images at once."""
    tiny = TinyDataset(tmp_path / "data")
    for number in range(3, NUMBER + 1):
        tiny._add(number)
    for annotation in tiny.info["annotations"][5:]:
        annotation["segments_info"][1]["category_id"] = 11  # a person instead of the car
    tiny.save()
    source = PanopticSource(str(tiny.json), str(tiny.images), str(tiny.pngs))
    register_source(NAME, source)
    broken = random_subset(NUMBER, 0.7, SEED)[2]
    Path(get_records(NAME)[broken]["file_name"]).write_bytes(b"no image")
    cfg = tiny_cfg(tmp_path, IMS_PER_BATCH=2)
    cfg.DATASETS.TRAIN = (NAME,)
    cfg.INPUT.MIN_SIZE_TRAIN = (24, 30, 36)
    cfg.INPUT.COLOR_AUG_SSD = True
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [20, 24]
    cfg.INPUT.CROP_AROUND_THINGS.PROBABILITY = 0.5
    cfg.INPUT.CROP_AROUND_THINGS.SIZES = [8.0, 12.0]
    cfg.INPUT.COPY_PASTE.PROBABILITY = 0.7
    cfg.INPUT.COPY_PASTE.DRAW_BY = "class"
    cfg.INPUT.COPY_PASTE.BLUR = 0.5
    cfg.DATALOADER.SKIP_CORRUPT = True
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.9
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.7
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


def samples(loader: TrainLoader, number: int) -> list[tuple]:
    return [
        (s["image_id"], s["image"], s["panoptic_ids"], s["segments"].gt_classes)
        for batch in itertools.islice(iter(loader), number)
        for s in batch
    ]


def assert_equal(found: list[tuple], expected: list[tuple]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one[0] == other[0]
        assert all(map(torch.equal, one[1:], other[1:]))


def test_samples_do_not_depend_on_workers_and_resume(cfg: CfgNode) -> None:
    loader = build_train_loader(cfg, seed=SEED)
    expected = samples(loader, 20)
    assert loader.skipped  # an unreadable image was met, and replaced by one of the subset
    records = get_records(NAME)
    subset = {records[i]["image_id"] for i in random_subset(NUMBER, 0.7, SEED)}
    assert {sample[0] for sample in expected} < subset
    # Something was pasted: all images but the second have two segments.
    assert any(len(sample[3]) > 2 for sample in expected if sample[0] != 2)
    cfg.DATALOADER.NUM_WORKERS = 2
    assert_equal(samples(build_train_loader(cfg, seed=SEED), 8), expected[:16])
    assert_equal(samples(build_train_loader(cfg, start_iter=13, seed=SEED), 7), expected[26:])


class Record(dict):
    """A record that a weak reference can watch."""


@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_no_record_stays_in_memory_as_an_object(
    cfg: CfgNode, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    """The loader has them serialised: as objects they would be copied into every data worker."""
    watched: list[weakref.ref[Record]] = []

    def records(_: CfgNode) -> list[Record]:
        found = [Record(record) for record in get_records(NAME)]
        watched[:] = map(weakref.ref, found)
        return found

    monkeypatch.setattr(loader_module, "train_records", records)
    cfg.DATALOADER.SAMPLER_TRAIN = sampler
    loader = build_train_loader(cfg, seed=SEED)
    gc.collect()
    assert len(watched) == NUMBER and not any(reference() for reference in watched)
    assert len(samples(loader, 2)) == 4


def test_donors_are_images_of_the_subset(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    draw = Donors.draw

    def recorded(self: Donors) -> Drawn | None:
        found = draw(self)
        drawn.append(found.record["file_name"] if found else "")
        return found

    monkeypatch.setattr(Donors, "draw", recorded)
    samples(build_train_loader(cfg, seed=SEED), 20)
    records = get_records(NAME)
    assert set(drawn) == {records[i]["file_name"] for i in random_subset(NUMBER, 0.7, SEED)}


def test_two_workers_share_one_stream(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    expected = samples(build_train_loader(cfg, seed=SEED), 6)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        found = samples(build_train_loader(cfg, seed=SEED), 6)
        assert_equal(found, expected[rank::2])


def test_classes_to_copy_are_checked(cfg: CfgNode) -> None:
    cfg.INPUT.COPY_PASTE.CLASSES = ["persn"]
    with pytest.raises(ConfigError, match=r"INPUT.COPY_PASTE.CLASSES.*did you mean 'person'"):
        build_train_loader(cfg, seed=SEED)
    cfg.INPUT.COPY_PASTE.CLASSES = ["road"]  # stuff
    with pytest.raises(ConfigError, match=r"INPUT.COPY_PASTE.CLASSES"):
        build_train_loader(cfg, seed=SEED)
    cfg.INPUT.COPY_PASTE.CLASSES = ["person"]
    records = [r for r in get_records(NAME) if r["image_id"] < 3]  # of whose people none is single
    from panoptic_ext.data.donors import build_donors

    with pytest.raises(DatasetError, match="finds no thing of person in 2 images"):
        build_donors(cfg, records)
