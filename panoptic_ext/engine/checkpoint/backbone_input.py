"""What pretrained weights of a backbone expect of a config, kept in their file beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["BACKBONE_INPUT", "BackboneInput"]

BACKBONE_INPUT = "backbone_input"
"""Key of a weight file, beside "model", under which `BackboneInput.as_dict` lies."""

_PLAIN_VITS = ("beit", "deit", "eva", "vit_")  # beginnings of timm's names
_TOLERANCE = 0.51  # grey levels: 127, 127.5 and 128 are all written for the same weights


@dataclass(frozen=True)
class BackboneInput:
    """The images and the model that the weights of a backbone were trained with.

    Attributes:
        timm_name: of the model, as MODEL.TIMM.NAME or MODEL.VIT.NAME takes it.
        pixel_mean, pixel_std: of red, green and blue, grey levels of 0 to 255.
    """

    timm_name: str
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a file that `torch.load(weights_only=True)` reads."""
        return asdict(self)

    @classmethod
    def of_checkpoint(cls, checkpoint: Mapping[str, Any]) -> BackboneInput | None:
        """What a weight file says of itself, or None."""
        content = checkpoint.get(BACKBONE_INPUT)
        if not isinstance(content, dict) or set(content) != set(cls.__dataclass_fields__):
            return None
        return cls(**content)

    def keys(self) -> str:
        """The config keys that fit, as KEY VALUE pairs of a command line."""
        return (
            f"INPUT.FORMAT RGB MODEL.PIXEL_MEAN '{list(self.pixel_mean)}' "
            f"MODEL.PIXEL_STD '{list(self.pixel_std)}'"
        )

    def mend(self) -> str:
        """How to build the backbone, for the error about weights that do not fit."""
        if self.timm_name.startswith(_PLAIN_VITS):
            kind, builder = "MODEL.VIT.NAME", "build_plain_vit_backbone"
        else:
            kind, builder = "MODEL.TIMM.NAME", "build_timm_two_way_fpn_backbone"
        return (
            f"They are of the backbone {kind} {self.timm_name}, with MODEL.BACKBONE.NAME "
            f"such as {builder}, and of {self.keys()}"
        )

    def difference(self, model: nn.Module) -> str:
        """How a model's backbone, or the images that it makes of its inputs, differ; "" if not.

        Args:
            model: its `pixel_mean` and `pixel_std` (3 channels), and `input_format` ("RGB" or
                "BGR") if it has one, are compared; of its modules the name `timm_name`.
        """
        # Tensors alone do not tell: those of EfficientNet-Lite0 are a part of Lite1's.
        other = sorted(_timm_names(model) - {_without_tag(self.timm_name)})
        if other:
            return (
                f"the backbone is {', '.join(other)}, but the weights are of another, "
                f"{self.timm_name}; set MODEL.TIMM.NAME to it, or take weights of {other[0]}"
            )
        mean, std = (getattr(model, name, None) for name in ("pixel_mean", "pixel_std"))
        if not isinstance(mean, Tensor) or not isinstance(std, Tensor):
            return ""
        channels = getattr(model, "input_format", None)
        fits = _is_near(mean, self.pixel_mean) and _is_near(std, self.pixel_std)
        if fits and channels in ("RGB", None):
            return ""
        found = f"MODEL.PIXEL_MEAN {_numbers(mean)}, MODEL.PIXEL_STD {_numbers(std)}"
        if channels:
            found = f"INPUT.FORMAT {channels}, {found}"
        return f"the config has {found}; the weights of the backbone expect {self.keys()}"


def _timm_names(model: nn.Module) -> set[str]:
    names = (getattr(module, "timm_name", None) for module in model.modules())
    return {_without_tag(name) for name in names if isinstance(name, str)}


def _without_tag(timm_name: str) -> str:
    """ "resnet18.tv_in1k" -> "resnet18"; the tag names the weights."""
    return timm_name.partition(".")[0]


def _is_near(found: Tensor, expected: tuple[float, ...]) -> bool:
    values = torch.tensor(expected)
    return found.numel() == len(expected) and bool(
        ((found.detach().cpu().flatten() - values).abs() <= _TOLERANCE).all()
    )


def _numbers(values: Tensor) -> str:
    return str([round(value, 3) for value in values.flatten().tolist()])
