"""Data loaders whose samples depend on the seed and the position in the stream alone.

Detectron2's loaders group and seed inside worker processes, so a resumed run gets other images and
other augmentations. Here the main process makes the stream of batches, as indices, and each sample
is seeded from (seed, its position in the stream). The samples of iteration i are therefore the same
for any number of data workers, and a resumed run skips to them without reading an image.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, build_detection_test_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from panoptic_ext.data import PanopticDatasetMapper, filter_empty, get_records
from panoptic_ext.data.donors import DonatingMapper, build_donors
from panoptic_ext.engine.checkpoint.rng import seeded_sample
from panoptic_ext.engine.distributed import images_of_a_worker
from panoptic_ext.engine.samplers import sampler_maker
from panoptic_ext.errors import ConfigError, DatasetError, PanopticExtError
from panoptic_ext.interruption import born_deaf, outlive_interruption

__all__ = ["TrainLoader", "build_test_loader", "build_train_loader", "train_records"]

logger = logging.getLogger(__name__)

Record = dict[str, Any]
_MAX_TRIES = 100  # unreadable images in a row before giving up


class _Position(NamedTuple):
    """One place in the stream of samples: the record's index, and the position over all workers."""

    record: int
    stream: int


class _Loaded(NamedTuple):
    """A sample, or the error instead, and the names of the files that could not be read."""

    sample: dict[str, Any] | None
    skipped: list[str]
    error: PanopticExtError | None


class TrainLoader:
    """Infinite iterable of batches (lists of mapped samples) of one worker.

    Loading starts at the first `next()`; `seed` and `start_iter` may be set until then.

    Attributes:
        seed: of the order and of the augmentations; equal on all workers.
        start_iter: number of batches to skip.
        skipped: file name -> how often it could not be read and another image was taken.
    """

    def __init__(
        self,
        records: list[Record],
        mapper: Callable[[Record], dict[str, Any] | None],
        *,
        batch_size: int,
        seed: int,
        start_iter: int = 0,
        make_sampler: Callable[[int], Any] | None = None,
        aspect_ratio_grouping: bool = True,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        """
        Args:
            records: data set records with "width", "height" and "file_name".
            mapper: record -> sample, or None to take the next record instead.
            batch_size: images per batch on this worker.
            seed: >= 0.
            start_iter: number of batches to skip.
            make_sampler: seed -> infinite iterable of record indices of this worker; default is
                Detectron2's TrainingSampler.
            aspect_ratio_grouping: batches of only wide or only tall images.
            num_workers: data loading processes; 0 loads in this one.
            pin_memory: copy tensors into page-locked memory.
        """
        self.records = DatasetFromList(records, copy=False)
        self.mapper = mapper
        self.batch_size = batch_size
        self.seed = seed
        self.start_iter = start_iter
        self.skipped: Counter[str] = Counter()
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self._make_sampler = make_sampler or (lambda s: TrainingSampler(len(records), seed=s))
        self._wide = [r["width"] > r["height"] for r in records] if aspect_ratio_grouping else None

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        sampler = self._make_sampler(self.seed)
        usable = getattr(sampler, "subset", range(len(self.records)))
        # Things are copied from images of the sampler's subset alone.
        mapper = self.mapper
        if isinstance(mapper, DonatingMapper):
            mapper = mapper.among(usable)
        loader = DataLoader(
            _SeededDataset(self.records, mapper, self.seed, usable),
            batch_sampler=itertools.islice(self.index_batches(sampler), self.start_iter, None),
            num_workers=self.num_workers,
            collate_fn=_as_is,
            pin_memory=self.pin_memory,
            worker_init_fn=_start_worker,
            # Otherwise the loader draws from torch's global generator whenever it starts.
            generator=torch.Generator().manual_seed(self.seed),
        )
        with born_deaf():
            batches = iter(loader)
        for batch in batches:
            yield [self._unwrap(loaded) for loaded in batch]

    def index_batches(self, sampler: Iterable[int] | None = None) -> Iterator[list[_Position]]:
        """Batches of positions, from iteration 0 on, of this seed's sampler."""
        sampler = self._make_sampler(self.seed) if sampler is None else sampler
        rank, world_size = comm.get_rank(), comm.get_world_size()
        buckets: tuple[list[_Position], list[_Position]] = ([], [])
        for i, index in enumerate(sampler):
            bucket = buckets[self._wide[index] if self._wide else 0]
            bucket.append(_Position(index, rank + i * world_size))
            if len(bucket) == self.batch_size:
                yield bucket[:]  # a copy, because the bucket is filled again
                bucket.clear()

    def report_skipped(self) -> None:
        """Log the images that were skipped, if any."""
        if self.skipped:
            logger.warning(
                "%d images could not be read and were replaced by others: %s",
                len(self.skipped),
                ", ".join(f"{name} ({n}x)" for name, n in sorted(self.skipped.items())),
            )

    def _unwrap(self, loaded: _Loaded) -> dict[str, Any]:
        self.skipped.update(loaded.skipped)
        if loaded.error is not None:
            raise loaded.error
        assert loaded.sample is not None
        return loaded.sample


class _SeededDataset(Dataset):
    """Position -> mapped sample, seeded by (seed, position in the stream, number of the try)."""

    def __init__(self, records: Any, mapper: Callable, seed: int, usable: Sequence[int]) -> None:
        """
        Args:
            records: of the data set.
            mapper: record -> sample, or None.
            seed: of the samples.
            usable: indices of the records that may take the place of one without a sample.
        """
        self._records, self._mapper, self._seed = records, mapper, seed
        self._usable = usable

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, position: _Position) -> _Loaded:
        skipped: list[str] = []
        tries = min(len(self._usable), _MAX_TRIES)
        for attempt in range(tries):
            record = self._records[self._record_of(position, attempt)]
            try:
                with seeded_sample(self._seed, position.stream, attempt):
                    sample = self._mapper(record)
            except PanopticExtError as error:
                # As a value: torch would raise a worker's error with its traceback as message.
                return _Loaded(None, skipped, error)
            if sample is not None:
                return _Loaded(sample, skipped, None)
            skipped.append(str(record.get("file_name")))
        return _Loaded(
            None,
            skipped,
            DatasetError(
                f"{tries} images in a row cannot be read, the first is {skipped[0]}. Check the "
                "data set (panoptic-ext data check) and that its disk is there"
            ),
        )

    def _record_of(self, position: _Position, attempt: int) -> int:
        """The record at a position, or the usable one that follows after so many attempts."""
        if attempt == 0:
            return position.record
        place = self._usable.index(position.record) + attempt
        return self._usable[place % len(self._usable)]


def build_train_loader(cfg: CfgNode, start_iter: int = 0, seed: int | None = None) -> TrainLoader:
    """Build this worker's training loader of a config.

    Args:
        cfg: DATASETS.TRAIN, DATALOADER, SOLVER.IMS_PER_BATCH, SEED and INPUT are read.
        start_iter: iterations to skip.
        seed: None takes cfg.SEED, or if that is negative a random one, equal on all workers.

    Raises:
        DatasetError: the data set is empty, or all of it is filtered out.
        ConfigError: unknown sampler, or a batch size that the workers cannot share.
    """
    records = train_records(cfg)
    if seed is None:
        seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    return TrainLoader(
        records,
        _train_mapper(cfg, records),
        batch_size=images_of_a_worker(cfg, comm.get_world_size()),
        seed=int(seed),
        start_iter=start_iter,
        make_sampler=sampler_maker(cfg, records),
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        pin_memory=_pins_memory(cfg),
    )


def _train_mapper(cfg: CfgNode, records: list[Record]) -> Callable[[Record], Record | None]:
    mapper, donors = PanopticDatasetMapper(cfg, True), build_donors(cfg, records)
    return mapper if donors is None else DonatingMapper(mapper, donors)


def build_test_loader(cfg: CfgNode, dataset_name: str) -> Any:
    """Build Detectron2's test loader with our mapper: one image per batch, split over workers.

    Raises:
        DatasetError: the data set is empty.
    """
    records = get_records(dataset_name)
    if not records:
        raise DatasetError(f"data set {dataset_name} (DATASETS.TEST) has no images")
    loader = build_detection_test_loader(
        records,
        mapper=_MapperWithoutErrors(PanopticDatasetMapper(cfg, False)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    # No arguments of Detectron2's builder.
    loader.worker_init_fn, loader.pin_memory = outlive_interruption, _pins_memory(cfg)
    return _TestLoader(loader)


class _TestLoader:
    """A loader that raises the errors which its mapper returned: an evaluation skips no image."""

    def __init__(self, loader: DataLoader) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        with born_deaf():
            batches = iter(self._loader)
        for batch in batches:
            for loaded in batch:
                if loaded.error is not None:
                    raise loaded.error
            yield [loaded.sample for loaded in batch]


class _MapperWithoutErrors:
    """A mapper that returns its errors, because a worker would turn them into tracebacks."""

    def __init__(self, mapper: Callable[[Record], dict[str, Any] | None]) -> None:
        self._mapper = mapper

    def __call__(self, record: Record) -> _Loaded:
        try:
            return _Loaded(self._mapper(record), [], None)
        except PanopticExtError as error:
            return _Loaded(None, [], error)


def _pins_memory(cfg: CfgNode) -> bool:
    """Whether samples are copied to page-locked memory, from which CUDA copies without waiting."""
    return torch.device(cfg.MODEL.DEVICE).type == "cuda" and torch.cuda.is_available()


def train_records(cfg: CfgNode) -> list[Record]:
    """The records of DATASETS.TRAIN that a training uses.

    Raises:
        ConfigError: no data set is named.
        DatasetError: the data set is empty, or all of it is filtered out.
    """
    if not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN is empty; name a data set to train on")
    records = list(itertools.chain.from_iterable(get_records(n) for n in cfg.DATASETS.TRAIN))
    names = ", ".join(cfg.DATASETS.TRAIN)
    if not records:
        raise DatasetError(f"data set {names} (DATASETS.TRAIN) has no images")
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        kept = filter_empty(records)
        if not kept:
            raise DatasetError(
                f"none of the {len(records)} images of {names} has a segment that is not crowd; "
                "check the annotations, or set DATALOADER.FILTER_EMPTY_ANNOTATIONS False"
            )
        if len(kept) < len(records):
            logger.info("Left out %d images without segments", len(records) - len(kept))
        records = kept
    return records


def _as_is(batch: list) -> list:
    return batch


def _start_worker(_worker_id: int) -> None:
    outlive_interruption()
    # One thread: the workers already run in parallel.
    torch.set_num_threads(1)
