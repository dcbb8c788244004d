"""Samplers of training images: Detectron2's own orders, subsets, and rare classes repeated."""

from __future__ import annotations

import inspect
import itertools
import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import RandomSubsetTrainingSampler
from detectron2.utils import comm

from panoptic_ext.engine import samplers
from panoptic_ext.engine.samplers import SubsetSampler, random_subset, sampler_maker
from panoptic_ext.errors import ConfigError
from tests.tiny.training import tiny_cfg, tiny_records


def repeating(threshold: float, ratio: float = 1.0) -> CfgNode:
    cfg = tiny_cfg("unused")
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = threshold
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = ratio
    return cfg


def street_records(number: int = 40) -> list[dict[str, Any]]:
    """Stuff 0 in all images, thing 1 in every fourth, stuff 2 in every tenth, thing 3 in none."""
    records = tiny_records(number)
    for i, record in enumerate(records):
        classes = [0, 0] + [1, 1, 1] * (i % 4 == 1) + [2] * (i % 10 == 5)
        record["segments_info"] = [{"category_id": c, "isthing": c % 2 == 1} for c in classes]
    return records


def drawn(sampler: Any, number: int) -> list[int]:
    return list(itertools.islice(sampler, number))


def test_samplers_of_detectron2() -> None:
    cfg = tiny_cfg("unused")
    records = [dict(r, segments_info=[{"category_id": r["image_id"] == 3}]) for r in tiny_records()]
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.9
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    stream = itertools.islice(sampler_maker(cfg, records)(1), 400)
    counts = np.bincount(list(stream), minlength=10)
    assert counts[3] > 2 * counts[4]
    cfg.DATALOADER.SAMPLER_TRAIN = "RandomSubsetTrainingSampler"
    assert len(set(itertools.islice(sampler_maker(cfg, records)(1), 50))) == 10
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
    assert len(set(itertools.islice(sampler_maker(cfg, records)(1), 50))) == 5
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.05  # of ten images: none
    with pytest.raises(ConfigError, match=r"RANDOM_SUBSET_RATIO = 0\.05 of 10 images takes 0"):
        sampler_maker(cfg, records)
    cfg.DATALOADER.SAMPLER_TRAIN = "TraningSampler"
    with pytest.raises(ConfigError, match="did you mean 'TrainingSampler'"):
        sampler_maker(cfg, records)


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

    class Sampler(samplers.RepeatFactorTrainingSampler):
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

    original = samplers.RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    if "sqrt" in inspect.signature(original).parameters:  # main: its own factors are tested
        del Sampler.repeat_factors_from_category_frequency
    monkeypatch.setattr(samplers, "RepeatFactorTrainingSampler", Sampler)
    sampler_maker(cfg, records)(1)
    assert given[0][3] == pytest.approx(factor) and given[0][4] == pytest.approx(1)


def test_things_and_stuff_of_panoptic_records_are_repeated() -> None:
    """Against the formula of LVIS: r(I) = max over its classes of max(1, sqrt(t / f(c)))."""
    records, threshold = street_records(), 0.5
    share = {0: 1.0, 1: 0.25, 2: 0.1}
    factors = [
        max(max(1.0, math.sqrt(threshold / share[s["category_id"]])) for s in r["segments_info"])
        for r in records
    ]
    epochs = 300
    number = int(epochs * sum(factors))
    counts = np.bincount(drawn(sampler_maker(repeating(threshold), records)(1), number))
    assert np.allclose(counts / epochs, factors, atol=0.15)


def test_log_names_repeated_classes(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("panoptic_ext").propagate = True
    caplog.set_level(logging.INFO, "panoptic_ext")
    drawn(sampler_maker(repeating(0.5), street_records())(1), 1)
    # sqrt 5 = 2.24 for 4 images; 8 of the 10 images of class 1 have sqrt 2 = 1.41.
    assert "of 40 images: 2 2.2x (in 4), 1 1.6x (in 10); an epoch has 48" in caplog.text
    caplog.clear()
    drawn(sampler_maker(repeating(0.1), street_records())(1), 1)
    assert "repeats no image" in caplog.text and "REPEAT_THRESHOLD = 0.1" in caplog.text


@pytest.mark.parametrize("seed", [0, 7])
def test_subset_is_that_of_detectron2(seed: int) -> None:
    cfg = tiny_cfg("unused")
    cfg.DATALOADER.SAMPLER_TRAIN = "RandomSubsetTrainingSampler"
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.3
    expected = RandomSubsetTrainingSampler(40, 0.3, seed_shuffle=seed, seed_subset=seed)
    found = sampler_maker(cfg, tiny_records(40))(seed)
    assert drawn(found, 50) == drawn(expected, 50)


def test_repeats_within_a_subset() -> None:
    records, seed = street_records(), 3
    sampler = sampler_maker(repeating(0.5, ratio=0.5), records)(seed)
    assert isinstance(sampler, SubsetSampler)
    subset = random_subset(40, 0.5, seed)
    assert sampler.subset == subset and len(set(subset)) == 20
    counts = np.bincount(drawn(sampler, 2000), minlength=40)
    assert set(np.flatnonzero(counts)) == set(subset)
    rare = [i for i in subset if len(records[i]["segments_info"]) > 2]
    common = [i for i in subset if i not in rare]
    assert min(counts[rare]) > 1.1 * max(counts[common])


def test_workers_share_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = sampler_maker(repeating(0.5, ratio=0.5), street_records())
    alone = drawn(maker(5), 60)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(drawn(maker(5), 30))
    assert [i for pair in zip(*parts, strict=True) for i in pair] == alone
