"""SOLVER.EMA: the average of weights equals a naive loop, is what files hold, and is resumed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from panoptic_ext.engine.earlier_results import weights_hash
from panoptic_ext.engine.run_config import load_cfg
from panoptic_ext.engine.weight_average import WeightAverage
from panoptic_ext.errors import CheckpointError, ConfigError
from tests.tiny.training import Killed, TinyTrainer, tiny_cfg


def cfg_of(folder: Path, **solver: Any) -> CfgNode:
    cfg = tiny_cfg(folder, **solver)
    cfg.SOLVER.EMA.ENABLED = True
    return cfg


class EvaluatedTrainer(TinyTrainer):
    """Keeps a hash of the weights that each evaluation saw."""

    seen: list[str]

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        cls.seen.append(weights_hash(model.state_dict()))
        return {}


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    EvaluatedTrainer.seen = []


def trainer_of(cfg: CfgNode, *, resume: bool = False) -> EvaluatedTrainer:
    torch.manual_seed(cfg.SEED)
    trainer = EvaluatedTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer


def same(state: dict[str, Any], other: dict[str, Any]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)


@settings(max_examples=20, deadline=None)
@given(
    decay=st.floats(0, 0.9999),
    warmup=st.booleans(),
    steps=st.integers(0, 6),
    seed=st.integers(0, 9),
)
def test_equals_a_naive_loop(decay: float, warmup: bool, steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    model[2].weight.requires_grad_(False)
    average = WeightAverage(model, decay=decay, warmup=warmup)
    expected = {k: v.double() for k, v in model.state_dict().items()}
    for t in range(steps):
        with torch.no_grad():
            for tensor in (*model.parameters(), model[1].running_mean, model[1].running_var):
                if tensor is not model[2].weight:
                    tensor.add_(torch.rand_like(tensor))
        kept = min(decay, (1 + t) / (10 + t)) if warmup else decay
        for name, value in model.state_dict().items():
            expected[name] = kept * expected[name] + (1 - kept) * value.double()
        average.update()
    weights, trained = average.weights(), model.state_dict()
    assert list(weights) == list(trained)
    for name, value in expected.items():
        torch.testing.assert_close(weights[name].double(), value, rtol=1e-5, atol=1e-6)
    before = {k: v.clone() for k, v in trained.items()}
    with average.applied():
        assert same(model.state_dict(), weights)
    assert same(model.state_dict(), before) and same(average.weights(), weights)


def test_an_error_in_the_block_gives_the_trained_weights_back() -> None:
    model = nn.Linear(2, 2)
    average = WeightAverage(model, decay=0.9)
    nn.init.zeros_(model.weight)
    with pytest.raises(Killed), average.applied():
        assert bool(model.weight.any())
        raise Killed
    assert not bool(model.weight.any())


def test_half_precision_is_averaged_in_float32_and_shared_weights_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).bfloat16()
    model[1].weight = model[0].weight
    nn.init.ones_(model[0].weight)
    average = WeightAverage(model, decay=0.999, warmup=False)
    for _ in range(2):
        nn.init.constant_(model[0].weight, 2.0)
        average.update()
    assert len(average.state_dict()["trained"]) == 3
    # In bfloat16 two updates by 0.001 would leave 1.
    torch.testing.assert_close(average._average["0.weight"], torch.full((2, 2), 1.001999))
    weights = average.weights()
    assert weights["0.weight"].dtype == torch.bfloat16
    assert torch.equal(weights["0.weight"], weights["1.weight"])


def test_a_weight_that_is_cached_by_its_version_is_seen_to_change() -> None:
    model = nn.Linear(2, 2)
    average = WeightAverage(model, decay=0.9)
    version = model.weight._version
    with average.applied():
        assert model.weight._version > version
        version = model.weight._version
    assert model.weight._version > version


def test_files_hold_what_was_evaluated(tmp_path: Path) -> None:
    cfg = cfg_of(tmp_path)
    cfg.TEST.EVAL_PERIOD = 4
    trainer = trainer_of(cfg)
    trainer.train()
    files = [tmp_path / n for n in ("model_0000003.pth", "model_0000007.pth", "model_final.pth")]
    contents = [torch.load(file, weights_only=True) for file in files]
    assert [weights_hash(content["model"]) for content in contents] == EvaluatedTrainer.seen
    final, trained = contents[-1], trainer.model.state_dict()
    assert not torch.equal(final["model"]["head.weight"], trained["head.weight"])
    state = final["trainer"]["weight_average"]
    assert state["updates"] == 12
    assert all(torch.equal(value, trained[name]) for name, value in state["trained"].items())
    assert {"norm.running_mean", "norm.running_var"} < state["trained"].keys()


def test_training_is_the_same_with_an_average(tmp_path: Path) -> None:
    with_average = trainer_of(cfg_of(tmp_path / "a"))
    with_average.train()
    without = trainer_of(tiny_cfg(tmp_path / "b"))
    without.train()
    assert with_average.losses == without.losses
    assert same(with_average.model.state_dict(), without.model.state_dict())


@pytest.mark.parametrize(("kill_at", "precise"), [(5, False), (9, True)])
def test_killed_and_resumed_equals_uninterrupted(
    tmp_path: Path, kill_at: int, precise: bool
) -> None:
    def cfg_in(folder: str) -> CfgNode:
        cfg = cfg_of(tmp_path / folder)
        cfg.TEST.EVAL_PERIOD = 4
        cfg.TEST.PRECISE_BN.ENABLED = precise
        cfg.TEST.PRECISE_BN.NUM_ITER = 2
        return cfg

    whole = trainer_of(cfg_in("whole"))
    whole.train()
    evaluated, EvaluatedTrainer.seen = EvaluatedTrainer.seen, []
    first = trainer_of(cfg_in("parts"))
    first.kill_at = kill_at
    with pytest.raises(Killed):
        first.train()
    torch.rand(17)
    second = trainer_of(cfg_in("parts"), resume=True)
    second.train()
    assert second.start_iter == kill_at // 4 * 4
    assert second.losses == whole.losses[second.start_iter :]
    assert evaluated == EvaluatedTrainer.seen
    ends = [
        torch.load(tmp_path / n / "model_final.pth", weights_only=True) for n in ("parts", "whole")
    ]
    assert same(ends[0]["model"], ends[1]["model"])
    assert same(*(end["trainer"]["weight_average"]["trained"] for end in ends))


def test_precise_statistics_are_those_of_the_average(tmp_path: Path) -> None:
    cfg = cfg_of(tmp_path / "precise", BASE_LR=0.03)
    cfg.TEST.PRECISE_BN.ENABLED = True
    cfg.TEST.PRECISE_BN.NUM_ITER = 3
    trainer = trainer_of(cfg)
    trainer.train()
    plain = trainer_of(cfg_of(tmp_path / "plain", BASE_LR=0.03))
    plain.train()
    # Those of the trained weights are what they are without PreciseBN.
    assert torch.equal(trainer.model.norm.running_mean, plain.model.norm.running_mean)
    weights = torch.load(tmp_path / "precise" / "model_final.pth", weights_only=True)["model"]
    batches = iter(TinyTrainer.build_train_loader(cfg))
    with torch.no_grad():
        inputs = [torch.stack([d["x"] for d in next(batches)]) for _ in range(3)]
        layer = [weights["backbone.weight"], weights["backbone.bias"]]
        means = [nn.functional.linear(x, *layer).mean(0) for x in inputs]
    torch.testing.assert_close(weights["norm.running_mean"], torch.stack(means).mean(0))


def test_switched_on_or_off_when_resumed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("panoptic_ext").propagate = True
    averaged = trainer_of(cfg_of(tmp_path / "a"))
    averaged.train()
    off = trainer_of(tiny_cfg(tmp_path / "a", MAX_ITER=13), resume=True)
    assert "averaged weights (SOLVER.EMA), which this run does not go on with" in caplog.text
    assert same(off.model.state_dict(), averaged.model.state_dict())
    plain = trainer_of(tiny_cfg(tmp_path / "b"))
    plain.train()
    on = trainer_of(cfg_of(tmp_path / "b", MAX_ITER=13), resume=True)
    assert "SOLVER.EMA starts at this iteration" in caplog.text
    assert same(on.average.weights(), plain.model.state_dict())


def test_weights_of_another_run_are_the_first_average(tmp_path: Path) -> None:
    trainer_of(tiny_cfg(tmp_path / "a")).train()
    cfg = cfg_of(tmp_path / "b")
    cfg.MODEL.WEIGHTS = str(tmp_path / "a" / "model_final.pth")
    trainer = trainer_of(cfg)
    assert same(trainer.average.weights(), trainer.model.state_dict())


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    trainer_of(cfg_of(tmp_path)).train()
    file = tmp_path / "model_final.pth"
    content = torch.load(file, weights_only=True)
    trained = content["trainer"]["weight_average"]["trained"]
    trained["head.weight"] = torch.zeros(3)
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=r"trained.head.weight is a float32 tensor of shape"):
        trainer_of(cfg_of(tmp_path), resume=True)
    trained["tail.weight"] = trained.pop("head.weight")
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=r"has tail.weight, which the model does not have"):
        trainer_of(cfg_of(tmp_path), resume=True)


def test_a_decay_out_of_its_range_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"SOLVER.EMA.DECAY = 1.0, expected 0 to less than 1"):
        load_cfg("", ["SOLVER.EMA.DECAY", "1.0"], use_data=False)
