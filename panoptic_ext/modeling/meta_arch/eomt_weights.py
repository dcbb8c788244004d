"""What EoMT does with published weights: names of four forms, and differences to an encoder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from panoptic_ext.modeling.eomt.published_weights import (
    base_of_differences,
    from_published,
    is_eomt,
    published_form,
)
from panoptic_ext.modeling.meta_arch.base import BaseWeights
from panoptic_ext.modeling.meta_arch.query_model import QueryModel

__all__ = ["PublishedWeights"]

logger = logging.getLogger(__name__)

_BASE_KEY = "MODEL.EOMT.ENCODER_WEIGHTS"
_EMPTY_WEIGHT = "criterion.empty_weight"
_TOLERANCE = 0.51  # grey levels, as for weights of a backbone


class PublishedWeights(QueryModel):
    """Base class of EoMT: `adapt_state_dict`, and the interface `TakesBaseWeights`.

    A subclass sets `encoder_weights`.
    """

    encoder_weights: str
    """Address or file of the DINOv3 encoder to which a published `.bin` file holds differences;
    "": timm's weights of that encoder."""

    def base_weights(self, state_dict: Mapping[str, Any]) -> BaseWeights | None:
        """See `TakesBaseWeights`."""
        form = published_form(state_dict)
        if form is None or not form.is_difference:
            return None
        name = base_of_differences(state_dict)
        address = self.encoder_weights or f"timm://{name}"
        return BaseWeights(address, f"the DINOv3 encoder {name}", _BASE_KEY)

    def add_base_weights(self, state_dict: dict[str, Tensor], base: Mapping[str, Tensor]) -> None:
        """See `TakesBaseWeights`."""
        self._take_published(state_dict, base)

    def adapt_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Accept weights in the four published forms, too; see `AdaptsStateDict`."""
        if not prefix and is_eomt(state_dict):
            self._take_published(state_dict, None)
        super().adapt_state_dict(state_dict, prefix)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self.adapt_state_dict(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _take_published(
        self, state_dict: dict[str, Tensor], base: Mapping[str, Tensor] | None
    ) -> None:
        ours = from_published(state_dict, base)
        for name in ("mean", "std"):
            pixels = state_dict.get(f"network.encoder.pixel_{name}")
            if pixels is not None:
                _compare_pixels(name, pixels, getattr(self, f"pixel_{name}"))
        state_dict.clear()
        state_dict.update(ours)
        # The config has the weight of "no object", and weights may be of another number of classes.
        state_dict[_EMPTY_WEIGHT] = self.criterion.empty_weight


def _compare_pixels(name: str, in_file: Tensor, own: Tensor) -> None:
    """Warn if weights were trained on images that are normalised by other numbers.

    Args:
        name: "mean" or "std".
        in_file: 3 values of 0 to 1, red first.
        own: 3 grey levels.
    """
    wanted = 255.0 * in_file.detach().float().cpu().flatten()
    found = own.detach().cpu().flatten()
    if found.shape == wanted.shape and torch.allclose(found, wanted, rtol=0, atol=_TOLERANCE):
        return
    expected, present = ([round(x, 3) for x in values.tolist()] for values in (wanted, found))
    logger.warning(
        "The weights expect INPUT.FORMAT RGB and MODEL.PIXEL_%s %s; the config has %s",
        name.upper(),
        expected,
        present,
    )
