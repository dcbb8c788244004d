"""The training loader: the same samples for any number of processes and after any resume."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data.samplers import TrainingSampler

from panoptic_ext.engine import loader
from panoptic_ext.engine.checkpoint.rng import get_rng_state, preserved_rng, set_rng_state
from panoptic_ext.engine.loader import TrainLoader
from panoptic_ext.engine.samplers import SubsetSampler
from panoptic_ext.engine.system_errors import explain_system_error
from panoptic_ext.errors import DatasetError
from tests.tiny.training import tiny_mapper, tiny_records


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


def test_unreadable_images_of_a_subset_are_replaced_from_it() -> None:
    def mapper(record: dict[str, Any]) -> dict[str, Any] | None:
        return None if record["image_id"] in (3, 8) else tiny_mapper(record)

    def subset_of(seed: int) -> SubsetSampler:
        return SubsetSampler([8, 1, 3, 6], TrainingSampler(4, seed=seed))

    train_loader = make(mapper=mapper, make_sampler=subset_of, aspect_ratio_grouping=False)
    ids = [s[0] for batch in first(train_loader, 10) for s in batch]
    assert set(ids) == {1, 6} and ids.count(1) == ids.count(6) == 10
    assert train_loader.skipped == {"3.jpg": 5, "8.jpg": 5}


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


def test_a_signal_while_data_workers_start_ends_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C and SIGTERM reach a whole process group, also processes that have just begun."""
    expected = first(make(), 2)
    start = loader._start_worker

    def start_slowly(number: int) -> None:
        time.sleep(0.4)
        start(number)

    def signal_workers() -> None:
        while not multiprocessing.active_children():
            time.sleep(0.01)
        for worker in multiprocessing.active_children():
            for signum in (signal.SIGTERM, signal.SIGINT):
                # Of another process than the parent, whose SIGTERM means what it says.
                subprocess.run(["kill", f"-{int(signum)}", str(worker.pid)], check=True)

    monkeypatch.setattr(loader, "_start_worker", start_slowly)
    sender = threading.Thread(target=signal_workers)
    sender.start()
    try:
        assert first(make(num_workers=1), 2) == expected
    finally:
        sender.join()
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


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
