"""Samplers of training images, in Detectron2's orders: all, a random subset, rare classes repeated.

N is the number of images. Orders depend on the seed and on the number of workers alone, so that a
resumed run continues them.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler

from panoptic_ext.data import annotated, get_metadata
from panoptic_ext.errors import ConfigError, unknown

__all__ = ["SubsetSampler", "random_subset", "sampler_maker"]

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

    def over(chosen: Sequence[Record], seed: int) -> Iterable[int]:
        if not repeats:
            return TrainingSampler(len(chosen), seed=seed)
        factors = _repeat_factors(cfg, chosen, class_names)
        return RepeatFactorTrainingSampler(factors, seed=seed)

    # Detectron2's sampler of repeats has no subset. Both together are meant where a ratio is given.
    ratio = 1.0 if name == "TrainingSampler" else cfg.DATALOADER.RANDOM_SUBSET_RATIO
    if ratio == 1.0:
        return lambda seed: over(records, seed)
    _check_ratio(ratio, len(records))

    def over_subset(seed: int) -> Iterable[int]:
        subset = random_subset(len(records), ratio, seed)
        logger.info("Training on a random subset of %d of %d images", len(subset), len(records))
        return SubsetSampler(subset, over([records[i] for i in subset], seed))

    return over_subset


def random_subset(size: int, ratio: float, seed: int) -> list[int]:
    """The images that Detectron2's RandomSubsetTrainingSampler takes, in its order.

    Args:
        size: N.
        ratio: share of the images, 0 to 1.
        seed: its `seed_subset`.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(size, generator=generator)[: int(size * ratio)].tolist()


def _check_ratio(ratio: float, size: int) -> None:
    if int(size * ratio) < 1 or ratio > 1:
        raise ConfigError(
            f"DATALOADER.RANDOM_SUBSET_RATIO = {ratio} of {size} images takes "
            f"{max(0, int(size * ratio))}; expected at least one, and a ratio of at most 1"
        )


def _repeat_factors(
    cfg: CfgNode, records: Sequence[Record], class_names: Sequence[str]
) -> torch.Tensor:
    """(N,) how often each image is drawn (Gupta et al., LVIS, CVPR 2019); says so in the log."""
    threshold = cfg.DATALOADER.REPEAT_THRESHOLD
    entries = [{"annotations": annotated(record)} for record in records]
    # Only Detectron2 main has the key and this option.
    options = {} if cfg.DATALOADER.get("REPEAT_SQRT", True) else {"sqrt": False}
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        entries, threshold, **options
    )
    _log_repeats(entries, factors, class_names, threshold)
    return factors


def _log_repeats(
    entries: Sequence[Record], factors: torch.Tensor, class_names: Sequence[str], threshold: float
) -> None:
    """One line: the classes below the threshold, and how often their images are drawn."""
    images: Counter[int] = Counter()
    drawn: dict[int, float] = defaultdict(float)
    for factor, entry in zip(factors.tolist(), entries, strict=True):
        for category in {segment["category_id"] for segment in entry["annotations"]}:
            images[category] += 1
            drawn[category] += factor
    rare = [c for c, number in images.items() if number < threshold * len(entries)]
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
        len(entries),
        ", ".join(named),
        more,
        round(float(factors.sum())),
    )


def _class_names(cfg: CfgNode) -> Sequence[str]:
    return get_metadata(cfg.DATASETS.TRAIN[0]).thing_classes if cfg.DATASETS.TRAIN else ()
