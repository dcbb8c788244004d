"""Draw the pictures of one data set with the same options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from panoptic_ext.visualization.draw import check_drawing_options, draw_segments

__all__ = ["Pictures"]


class Pictures:
    """Draws pictures and counts the segments that got no name.

    Args:
        metadata, options: as `draw_panoptic`.

    Raises:
        ConfigError: an option is out of its range, or a class is unknown.
    """

    def __init__(self, metadata: Any, options: Mapping[str, Any]) -> None:
        check_drawing_options(metadata, **options)
        self._metadata, self._options = metadata, dict(options)
        self._num_segments = self._num_unlabelled = 0

    def draw(
        self,
        image_rgb: np.ndarray,
        panoptic_seg: np.ndarray | torch.Tensor,
        segments_info: Sequence[dict[str, Any]] | None,
        **options: Any,
    ) -> np.ndarray:
        """As `draw_panoptic`; `options` override those of the constructor."""
        drawing = draw_segments(
            image_rgb, panoptic_seg, segments_info, self._metadata, **{**self._options, **options}
        )
        self._num_segments += drawing.num_segments
        self._num_unlabelled += drawing.num_unlabelled
        return drawing.picture

    def unlabelled_line(self) -> str:
        """A line with the number of segments without a name, and what to do; "" if it is 0."""
        if not self._num_unlabelled:
            return ""
        counts = f"{self._num_unlabelled} of {self._num_segments}"
        line = f"{counts} segments in the pictures have no label: too small"
        if self._options.get("legend"):
            return line
        return f"{line}; --legend numbers the classes, and a number fits where a name does not"
