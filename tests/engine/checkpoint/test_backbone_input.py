"""What the weights of a backbone expect, compared with what a model makes of its inputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from panoptic_ext.engine.checkpoint.backbone_input import BACKBONE_INPUT, BackboneInput

EXPECTED = BackboneInput("resnet18", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


def model(mean=EXPECTED.pixel_mean, std=EXPECTED.pixel_std, input_format: str | None = "RGB"):
    module = nn.Module()
    module.pixel_mean = torch.tensor(mean).view(-1, 1, 1)
    module.pixel_std = torch.tensor(std).view(-1, 1, 1)
    if input_format:
        module.input_format = input_format
    return module


@pytest.mark.parametrize("input_format", ["RGB", None])
def test_a_model_that_fits(input_format: str | None) -> None:
    assert EXPECTED.difference(model(input_format=input_format)) == ""
    assert EXPECTED.difference(model((124.0, 116.0, 103.5), input_format=input_format)) == ""


@pytest.mark.parametrize(
    "other",
    [
        model((0.0, 0.0, 0.0)),
        model(std=(1.0, 1.0, 1.0)),
        model((103.53, 116.28, 123.675)),
        model(input_format="BGR"),
        model((103.53, 116.28, 123.675), (57.375, 57.12, 58.395), "BGR"),
        model((0.5,), (0.5,)),
    ],
)
def test_a_model_that_does_not(other: nn.Module) -> None:
    text = EXPECTED.difference(other)
    assert text.endswith(f"the weights of the backbone expect {EXPECTED.keys()}")
    assert EXPECTED.keys() == (
        "INPUT.FORMAT RGB MODEL.PIXEL_MEAN '[123.675, 116.28, 103.53]' "
        "MODEL.PIXEL_STD '[58.395, 57.12, 57.375]'"
    )


@pytest.mark.parametrize(("name", "fits"), [("resnet18.a1_in1k", True), ("resnet34", False)])
def test_another_backbone(name: str, fits: bool) -> None:
    """The tensors of ResNet-18 would fit a part of ResNet-34."""
    whole = model()
    whole.backbone = nn.Sequential(nn.Identity())
    whole.backbone[0].timm_name = name
    text = EXPECTED.difference(whole)
    assert text == "" if fits else text.startswith("the backbone is resnet34, but the weights are")


def test_a_model_without_means_is_not_compared() -> None:
    assert EXPECTED.difference(nn.Linear(1, 1)) == ""


@pytest.mark.parametrize("content", [None, 3, {}, {"timm_name": "resnet18"}])
def test_a_file_of_another_origin(content: object) -> None:
    assert BackboneInput.of_checkpoint({"model": {}, BACKBONE_INPUT: content}) is None
    assert BackboneInput.of_checkpoint({BACKBONE_INPUT: EXPECTED.as_dict()}) == EXPECTED
