"""Semantic scores from overlapping square windows of an image, with any model that has them.

Source: inference of EoMT for semantic segmentation (Kerssies et al., CVPR 2025), whose position
embedding fits squares of one size. Shapes: K classes, h x w an input image, H x W its output, S the
side of a window.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn

from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.meta_arch.base import MetaArchitecture
from panoptic_ext.postprocessing.windows import WindowMean, window_starts

__all__ = ["SemanticWindows", "check_windows", "in_windows"]

# Windows that go through the model at once. They bound its memory, whatever the image's size is.
_WINDOWS_AT_ONCE = 4

_Window = tuple[int, int, int]
"""Number of the image in its batch, first row, first column."""


def in_windows(model: nn.Module, side: int) -> nn.Module:
    """The model itself if `side` (see `side_of_windows`) is 0, else `SemanticWindows` of it."""
    return SemanticWindows(model, side) if side else model


class SemanticWindows(nn.Module):
    """A model that sees images in windows, in testing.

    A side of an image that is longer than S is covered by the fewest windows; see `window_starts`.
    An image whose shorter side is S has windows along its longer side alone.

    It is made around a model for as long as an evaluation or a prediction lasts; checkpoints are
    those of the model itself.
    """

    def __init__(
        self, model: nn.Module, side: int, windows_at_once: int = _WINDOWS_AT_ONCE
    ) -> None:
        """
        Args:
            model: a Detectron2 model whose outputs are "sem_seg" alone, scores or logits.
            side: S, pixels.
            windows_at_once: the most windows in a batch of the model.
        """
        super().__init__()
        self.model = model
        self.side = side
        self.windows_at_once = windows_at_once
        self.training = model.training

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """
        Args:
            batched_inputs: "image" ((3, h, w)), and "height" and "width" of the output.

        Returns:
            For each image "sem_seg", (K, H, W) float32: the mean over the windows of what the model
            gives at the size of a window, resized to the output.

        Raises:
            ConfigError: the model has no semantic scores, or other outputs, too.
        """
        means = [WindowMean((x["image"].shape[-2], x["image"].shape[-1])) for x in batched_inputs]
        for windows in self._batches(batched_inputs):
            outputs = self.model([self._cut(batched_inputs[i], *at) for i, *at in windows])
            for (i, top, left), output in zip(windows, outputs, strict=True):
                _check_names(type(self.model).__name__, output)
                means[i].add(output["sem_seg"], top, left)
        return [
            {"sem_seg": mean.mean((x.get("height", mean.size[0]), x.get("width", mean.size[1])))}
            for mean, x in zip(means, batched_inputs, strict=True)
        ]

    def _batches(self, batched_inputs: list[dict[str, Any]]) -> Iterator[list[_Window]]:
        """All windows, a batch at a time."""
        windows = [
            (i, top, left)
            for i, inputs in enumerate(batched_inputs)
            for top in window_starts(inputs["image"].shape[-2], self.side)
            for left in window_starts(inputs["image"].shape[-1], self.side)
        ]
        for start in range(0, len(windows), self.windows_at_once):
            yield windows[start : start + self.windows_at_once]

    def _cut(self, inputs: dict[str, Any], top: int, left: int) -> dict[str, Any]:
        """The input of a window, whose output has the window's own size."""
        image = inputs["image"][:, top : top + self.side, left : left + self.side]
        return {"image": image, "height": image.shape[-2], "width": image.shape[-1]}


def check_windows(cfg: Any, arch: type[MetaArchitecture]) -> None:
    """Raise ConfigError if TEST.SEMANTIC_WINDOWS is on and the model is known to give segments.

    Args:
        cfg: a config.
        arch: of its model, see `meta_architecture`.
    """
    if cfg.TEST.SEMANTIC_WINDOWS and not arch.gives_semantic_alone(cfg):
        raise _segments_error(arch.__name__, "does not with this config")


def _check_names(model: str, names: Collection[str]) -> None:
    """Raise ConfigError if the outputs of a model are not semantic scores alone."""
    if set(names) != {"sem_seg"}:
        raise _segments_error(model, f"gives {', '.join(sorted(names)) or 'nothing'}")


def _segments_error(model: str, found: str) -> ConfigError:
    return ConfigError(
        "TEST.SEMANTIC_WINDOWS True needs a model that gives sem_seg alone, because windows have "
        f"no segments in common, but {model} {found}; set SEMANTIC_ON True and PANOPTIC_ON and "
        "INSTANCE_ON False (in MODEL.MASK_FORMER.TEST or MODEL.TRANSFORMERS), or "
        "TEST.SEMANTIC_WINDOWS False"
    )
