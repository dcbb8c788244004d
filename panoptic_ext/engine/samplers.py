"""Samplers of training images, in Detectron2's orders: all, a random subset, rare classes repeated.

N is the number of images. Orders depend on the seed and on the number of workers alone, so that a
resumed run continues them.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler

from panoptic_ext.data import annotated, get_metadata
from panoptic_ext.errors import ConfigError, unknown

__all__ = ["SubsetSampler", "num_drawn", "random_subset", "sampler_maker"]

logger = logging.getLogger(__name__)

_NAMES = ("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler")
_MOST_NAMED = 12  # repeated classes in the line of the log

Record = dict[str, Any]


class SubsetSampler:
    """A sampler over some of the images.

    Attributes:
        subset: indices of these images in the data set.
    """

    def __init__(self, subset: Sequence[int], sampler: Iterable[int]) -> None:
        """
        Args:
            subset: indices of the images.
            sampler: of positions in `subset`.
        """
        self.subset = subset
        self._sampler = sampler

    def __iter__(self) -> Iterator[int]:
        return (self.subset[i] for i in self._sampler)


def sampler_maker(cfg: CfgNode, records: Sequence[Record]) -> Callable[[int], Iterable[int]]:
    """The sampler of DATALOADER.SAMPLER_TRAIN, as a function of the seed.

    Args:
        cfg: DATALOADER and the first name of DATASETS.TRAIN are read.
        records: panoptic ones or those of instances.

    Returns:
        seed -> infinite iterable of the indices of this worker's records.

    Raises:
        ConfigError: an unknown sampler, or a subset without an image.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name not in _NAMES:
        raise ConfigError(unknown("DATALOADER.SAMPLER_TRAIN", name, _NAMES))
    repeats = name == "RepeatFactorTrainingSampler"
    class_names = _class_names(cfg) if repeats else ()
    number = len(records)
    # The sampler keeps these and not the records, which the loader has in a form that takes less
    # memory and that its workers share.
    classes = [tuple(_classes_of(record)) for record in records] if repeats else []

    def over(images: Sequence[int], seed: int) -> Iterable[int]:
        if not repeats:
            return TrainingSampler(len(images), seed=seed)
        factors = _repeat_factors(cfg, [classes[i] for i in images], class_names)
        return RepeatFactorTrainingSampler(factors, seed=seed)

    ratio = _subset_ratio(cfg)
    if ratio == 1.0:
        return lambda seed: over(range(number), seed)
    _check_ratio(ratio, number)

    def over_subset(seed: int) -> Iterable[int]:
        subset = random_subset(number, ratio, seed)
        logger.info("Training on a random subset of %d of %d images", len(subset), number)
        return SubsetSampler(subset, over(subset, seed))

    return over_subset


def num_drawn(cfg: CfgNode, size: int) -> int:
    """How many images of a training set of `size` are drawn: those of the subset, if there is one.

    Args:
        cfg: DATALOADER is read.
        size: N.
    """
    return int(size * _subset_ratio(cfg))


def random_subset(size: int, ratio: float, seed: int) -> list[int]:
    """The images that Detectron2's RandomSubsetTrainingSampler takes, in its order.

    Args:
        size: N.
        ratio: share of the images, 0 to 1.
        seed: its `seed_subset`.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(size, generator=generator)[: int(size * ratio)].tolist()


def _subset_ratio(cfg: CfgNode) -> float:
    # Detectron2's sampler of repeats has no subset. Both together are meant where a ratio is given.
    if cfg.DATALOADER.SAMPLER_TRAIN == "TrainingSampler":
        return 1.0
    return cfg.DATALOADER.RANDOM_SUBSET_RATIO


def _check_ratio(ratio: float, size: int) -> None:
    if int(size * ratio) < 1 or ratio > 1:
        raise ConfigError(
            f"DATALOADER.RANDOM_SUBSET_RATIO = {ratio} of {size} images takes "
            f"{max(0, int(size * ratio))}; expected at least one, and a ratio of at most 1"
        )


def _repeat_factors(
    cfg: CfgNode, classes: Sequence[Collection[int]], class_names: Sequence[str]
) -> torch.Tensor:
    """(N,) how often each image is drawn (Gupta et al., LVIS, CVPR 2019); says so in the log.

    Args:
        cfg: DATALOADER is read.
        classes: N; those of each image.
        class_names: by class.
    """
    threshold = cfg.DATALOADER.REPEAT_THRESHOLD
    entries = [{"annotations": [{"category_id": c} for c in of_image]} for of_image in classes]
    # Only Detectron2 main has the key and this option.
    options = {} if cfg.DATALOADER.get("REPEAT_SQRT", True) else {"sqrt": False}
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        entries, threshold, **options
    )
    _log_repeats(classes, factors, class_names, threshold)
    return factors


def _log_repeats(
    classes: Sequence[Collection[int]],
    factors: torch.Tensor,
    class_names: Sequence[str],
    threshold: float,
) -> None:
    """One line: the classes below the threshold, and how often their images are drawn."""
    images: Counter[int] = Counter()
    drawn: dict[int, float] = defaultdict(float)
    for factor, of_image in zip(factors.tolist(), classes, strict=True):
        for category in of_image:
            images[category] += 1
            drawn[category] += factor
    rare = [c for c, number in images.items() if number < threshold * len(classes)]
    if not rare:
        logger.warning(
            "RepeatFactorTrainingSampler repeats no image: every class is in at least the share "
            "DATALOADER.REPEAT_THRESHOLD = %s of the images. Raise it to the share that a class "
            "should have",
            threshold,
        )
        return
    rare.sort(key=lambda category: (-drawn[category] / images[category], category))
    named = [
        f"{class_names[c] if c < len(class_names) else c} {drawn[c] / images[c]:.1f}x "
        f"(in {images[c]})"
        for c in rare[:_MOST_NAMED]
    ]
    more = f" and {len(rare) - len(named)} more" if len(rare) > len(named) else ""
    logger.info(
        "Images of rare classes are repeated, of %d images: %s%s; an epoch has %d",
        len(classes),
        ", ".join(named),
        more,
        round(float(factors.sum())),
    )


def _class_names(cfg: CfgNode) -> Sequence[str]:
    return get_metadata(cfg.DATASETS.TRAIN[0]).thing_classes if cfg.DATASETS.TRAIN else ()


def _classes_of(record: Record) -> set[int]:
    return {segment["category_id"] for segment in annotated(record)}
