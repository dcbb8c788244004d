"""The training step's own errors; what a step does is tested through the trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from panoptic_ext.engine.train_step import TrainStep
from panoptic_ext.errors import ConfigError


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
