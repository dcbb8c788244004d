"""The training loader: the same samples for any number of processes and after any resume."""

from __future__ import annotations

import inspect
import itertools
import logging
import os
import random
import signal
from typing import Any

import numpy as np
import pytest
import torch

from panoptic_ext.engine import loader
from panoptic_ext.engine.checkpoint.rng import get_rng_state, preserved_rng, set_rng_state
from panoptic_ext.engine.loader import TrainLoader
from panoptic_ext.engine.system_errors import explain_system_error
from panoptic_ext.errors import ConfigError, DatasetError
from tests.tiny.training import tiny_cfg, tiny_mapper, tiny_records


def make(number: int = 10, mapper: Any = tiny_mapper, **kwargs: Any) -> TrainLoader:
    kwargs = {"batch_size": 2, "seed": 5, **kwargs}
    return TrainLoader(tiny_records(number), mapper, **kwargs)


def first(train_loader: TrainLoader, number: int) -> list[list[tuple]]:
    batches = itertools.islice(iter(train_loader), number)
    return [[(s["image_id"], *s["x"].tolist()) for s in batch] for batch in batches]


def test_samples_do_not_depend_on_processes_or_global_generators() -> None:
    expected = first(make(), 8)
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    assert first(make(num_workers=2), 8) == expected
    assert first(make(), 8) == expected
    assert first(make(seed=6), 8) != expected


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_stream_continues(num_workers: int) -> None:
    expected = first(make(), 9)
    assert first(make(num_workers=num_workers, start_iter=5), 4) == expected[5:]


def test_skipping_reads_no_image() -> None:
    read: list[int] = []

    def mapper(record: dict[str, Any]) -> dict[str, Any]:
        read.append(record["image_id"])
        return tiny_mapper(record)

    next(iter(make(mapper=mapper, start_iter=100)))
    assert len(read) == 2


def test_loading_leaves_the_global_generators_alone() -> None:
    before = get_rng_state()
    first(make(), 3)
    first(make(num_workers=1), 3)
    after = get_rng_state()
    assert torch.equal(before["torch"], after["torch"])
    assert torch.equal(before["numpy"][1], after["numpy"][1])
    assert torch.equal(before["python"][1], after["python"][1])


def test_each_epoch_sees_each_image_once_without_grouping() -> None:
    batches = first(make(aspect_ratio_grouping=False), 5)
    assert sorted(s[0] for batch in batches for s in batch) == list(range(10))


def test_batches_are_wide_or_tall() -> None:
    records = tiny_records()
    for batch in first(make(), 20):
        assert len({records[s[0]]["width"] > records[s[0]]["height"] for s in batch}) == 1


def test_fewer_images_than_a_batch() -> None:
    assert [len(batch) for batch in first(make(3, batch_size=8), 3)] == [8, 8, 8]


def test_workers_share_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    from detectron2.utils import comm

    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    seen = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        batches = itertools.islice(make(aspect_ratio_grouping=False).index_batches(), 5)
        seen.extend(position for batch in batches for position in batch)
    assert sorted(p.stream for p in seen) == list(range(20))
    for epoch in (range(10), range(10, 20)):
        assert sorted(p.record for p in seen if p.stream in epoch) == list(range(10))


def test_unreadable_images_are_replaced_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    def mapper(record: dict[str, Any]) -> dict[str, Any] | None:
        return None if record["image_id"] == 4 else tiny_mapper(record)

    train_loader = make(mapper=mapper, aspect_ratio_grouping=False)
    ids = [s[0] for batch in first(train_loader, 5) for s in batch]
    assert 4 not in ids and ids.count(5) == 2
    assert train_loader.skipped == {"4.jpg": 1}
    logging.getLogger("panoptic_ext").propagate = True
    train_loader.report_skipped()
    assert "4.jpg (1x)" in caplog.text


def test_nothing_readable_is_an_error() -> None:
    with pytest.raises(DatasetError, match=r"10 images in a row .* the first is"):
        next(iter(make(mapper=lambda record: None)))


def failing_mapper(record: dict[str, Any]) -> dict[str, Any]:
    raise DatasetError(f"{record['file_name']} is broken")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_of_the_mapper_come_out_without_traceback(num_workers: int) -> None:
    with pytest.raises(DatasetError) as caught:
        next(iter(make(mapper=failing_mapper, num_workers=num_workers)))
    assert str(caught.value).endswith("is broken") and "\n" not in str(caught.value)


def killing_mapper(record: dict[str, Any]) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def test_killed_data_worker_is_explained() -> None:
    with pytest.raises(RuntimeError) as caught:
        next(iter(make(mapper=killing_mapper, num_workers=1)))
    explained = explain_system_error(caught.value)
    assert explained is not None and "Lower DATALOADER.NUM_WORKERS" in str(explained)


def test_full_shared_memory_is_explained() -> None:
    text = (
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's"
        " workers are out of shared memory. Please try to raise your shared memory limit."
    )
    assert "/dev/shm" in str(explain_system_error(RuntimeError(text)))
    assert explain_system_error(RuntimeError("CUDA error")) is None
    assert explain_system_error(ValueError(text)) is None


def test_full_disk_is_explained() -> None:
    assert "disk is full" in str(explain_system_error(OSError(28, "No space left on device")))
    assert explain_system_error(OSError(2, "No such file")) is None


def test_samplers_of_detectron2() -> None:
    cfg = tiny_cfg("unused")
    records = [dict(r, segments_info=[{"category_id": r["image_id"] == 3}]) for r in tiny_records()]
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.9
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    stream = itertools.islice(loader._sampler_maker(cfg, records)(1), 400)
    counts = np.bincount(list(stream), minlength=10)
    assert counts[3] > 2 * counts[4]
    cfg.DATALOADER.SAMPLER_TRAIN = "RandomSubsetTrainingSampler"
    assert len(set(itertools.islice(loader._sampler_maker(cfg, records)(1), 50))) == 10
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
    assert len(set(itertools.islice(loader._sampler_maker(cfg, records)(1), 50))) == 5
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.05  # of ten images: none
    with pytest.raises(ConfigError, match=r"RANDOM_SUBSET_RATIO = 0\.05 of 10 images takes 0"):
        loader._sampler_maker(cfg, records)
    cfg.DATALOADER.SAMPLER_TRAIN = "TraningSampler"
    with pytest.raises(ConfigError, match="did you mean 'TrainingSampler'"):
        loader._sampler_maker(cfg, records)


@pytest.mark.parametrize(("root", "factor"), [(True, 3.0), (False, 9.0)])
def test_repeat_factors_have_a_square_root_unless_told(
    root: bool, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DATALOADER.REPEAT_SQRT of Detectron2 main, whose option v0.6 lacks."""
    cfg = tiny_cfg("unused")
    cfg.DATALOADER.REPEAT_SQRT = root
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.9
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    records = [dict(r, segments_info=[{"category_id": r["image_id"] == 3}]) for r in tiny_records()]
    given: list[torch.Tensor] = []

    class Sampler(loader.RepeatFactorTrainingSampler):
        def __init__(self, factors: torch.Tensor, **options: Any) -> None:
            given.append(factors)
            super().__init__(factors, **options)

        @staticmethod
        def repeat_factors_from_category_frequency(
            records: Any, threshold: float, sqrt: bool = True
        ) -> torch.Tensor:
            """Main's signature, with v0.6's own factors."""
            factors = original(records, threshold)
            return factors if sqrt else factors**2

    original = loader.RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    if "sqrt" in inspect.signature(original).parameters:  # main: its own factors are tested
        del Sampler.repeat_factors_from_category_frequency
    monkeypatch.setattr(loader, "RepeatFactorTrainingSampler", Sampler)
    loader._sampler_maker(cfg, records)(1)
    assert given[0][3] == pytest.approx(factor) and given[0][4] == pytest.approx(1)


def test_rng_state_survives_a_checkpoint(tmp_path: Any) -> None:
    state = get_rng_state()
    torch.save(state, tmp_path / "rng.pth")
    draw = [random.random(), np.random.rand(), torch.rand(3).tolist()]
    with preserved_rng():
        random.random()
        np.random.rand()
        torch.rand(9)
    after = [random.random(), np.random.rand(), torch.rand(3).tolist()]
    set_rng_state(torch.load(tmp_path / "rng.pth", weights_only=True))
    assert [random.random(), np.random.rand(), torch.rand(3).tolist()] == draw
    assert [random.random(), np.random.rand(), torch.rand(3).tolist()] == after
