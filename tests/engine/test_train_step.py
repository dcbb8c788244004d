"""The training step's own errors; what a step does is tested through the trainer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from panoptic_ext.engine.divergence import divergence_of
from panoptic_ext.engine.train_step import TrainStep
from panoptic_ext.errors import ConfigError, DatasetError, NonFiniteLossError


class Normalised(nn.Module):
    """Batch normalisation of a map of one position an image."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        images = torch.stack([x["image"] for x in batch])
        return {"loss": self.norm(images.float().mean((2, 3), keepdim=True)).sum()}


def step_of(norm: nn.Module, images: int) -> TrainStep:
    model = Normalised(norm)
    batch = [{"image": torch.zeros(3, 20, 30)} for _ in range(images)]
    optimizer = torch.optim.SGD(list(model.parameters()), lr=0.1)
    return TrainStep(model, [batch], optimizer)


def test_one_value_a_channel_is_a_readable_error() -> None:
    with pytest.raises(ConfigError, match=r"batch of 20 x 30 pixels.*IMS_PER_BATCH.*FrozenBN"):
        step_of(nn.BatchNorm2d(3), images=1).run_step()


class Refusing(nn.Module):
    """A model with an error of its own."""

    def forward(self, _: Any) -> Any:
        raise ValueError("its own")


def test_other_value_errors_of_the_model_pass_through() -> None:
    step = TrainStep(Refusing(), [[]], torch.optim.SGD([torch.zeros(1)], lr=0.1))
    with pytest.raises(ValueError, match=r"^its own$"):
        step.run_step()


class Diverged(nn.Module):
    """A model that calls a function with its weight, which is NaN by default."""

    def __init__(self, call: Any, weight: float = float("nan")) -> None:
        super().__init__()
        self.call = call
        self.weight = nn.Parameter(torch.full((2, 2), weight))

    def forward(self, _: Any) -> Any:
        self.call(self.weight.detach())
        return {"loss": self.weight.sum()}


def raise_(error: Exception) -> Any:
    def call(_: Tensor) -> None:
        raise error

    return call


RPN = "Predicted boxes or scores contain Inf/NaN. Training has diverged."


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (raise_(FloatingPointError(RPN)), "Predicted boxes or scores contain Inf/NaN with"),
        (
            lambda w: linear_sum_assignment(w.numpy()),
            "matrix contains invalid numeric entries with",
        ),
        (
            lambda w: linear_sum_assignment(np.full((2, 2), np.inf)),
            "cost matrix is infeasible with",
        ),
        (lambda w: torch.multinomial(w, 1), "probability tensor contains either `inf`, `nan` or"),
        (torch.linalg.cholesky, "linalg.cholesky: .* with images"),
        (np.linalg.eigh, "with images"),
        (lambda w: int(w[0, 0]), "cannot convert float NaN to integer with"),
        (lambda w: torch.zeros(3)[w.long()], "index .* is out of bounds"),
        (raise_(AssertionError("Box tensor contains infinite or NaN!")), "infinite or NaN! with"),
        (raise_(NonFiniteLossError("the cost is NaN. Lower it")), "on worker 0: the cost is NaN w"),
    ],
)
def test_numbers_that_are_not_finite_in_the_forward_pass_are_named(call: Any, message: str) -> None:
    """The error has iteration and images, whichever code finds the numbers first."""
    model = Diverged(call)
    batch = [{"image_id": 5, "file_name": "a.jpg"}]
    step = TrainStep(model, [batch], torch.optim.SGD(model.parameters(), lr=0.1))
    step.iter = 7
    with pytest.raises(NonFiniteLossError, match=rf"not finite at iteration 7, .*{message}") as got:
        step.run_step()
    assert "with images 5 (a.jpg). The weights were not changed" in str(got.value)
    assert "Lower it" not in str(got.value) and len(str(got.value)) < 700


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (ValueError("expected 3 channels, found 4"), ""),
        (RuntimeError("CUDA out of memory"), ""),
        (DatasetError("label 7 is NaN"), ""),
        (KeyError("information"), ""),
        (RuntimeError("a value is nan, expected none"), "a value is nan, expected none"),
        (FloatingPointError(), "FloatingPointError"),
    ],
)
def test_other_errors_are_no_divergence(error: Exception, problem: str) -> None:
    model = Diverged(None, weight=1.0)
    model.register_buffer("mask", torch.tensor(float("-inf")))
    assert divergence_of(error, model) == problem
