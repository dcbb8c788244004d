"""Queries that begin at places of the image instead of Mask2Former's learned ones.

Learned queries have to specialise during training, so that each object is predicted by one query.
Short trainings on few images do not achieve this: where all objects have one class, the mask of
every query covers all objects. A placed query starts at a peak of a learned map of object centres,
with the feature of that pixel (as in FastInst, He et al., CVPR 2023, and Mask DINO, Li et al., CVPR
2023). Its mask has a window around the place: a paraboloid that is added to the mask logits. The
window is as large as the box that is learned with the centres (CenterNet, Zhou et al., 2019), and
every layer corrects it. CondInst (Tian et al., ECCV 2020) uses relative coordinates for the same
purpose.

The paraboloid is a polynomial in the pixel's position, and thus the product of five coefficients of
the query with five maps. These are further channels of embedding and features, so that masks stay
products (`QueryMasks`).

Queries predict things alone. Stuff has at most one segment for each class and needs no query: it is
read from the class of every pixel, as in Panoptic FPN (Kirillov et al., CVPR 2019).

Shapes: B images, Q queries, K classes, D channels of mask_features, C channels of a query, h x w
mask resolution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from detectron2.config import configurable
from torch import Tensor, nn
from torch.nn import functional as F

from panoptic_ext.config.mask_former import mask_former_task
from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.layers.class_layer import ClassLayer
from panoptic_ext.modeling.layers.position_encoding import sine_position_embedding
from panoptic_ext.modeling.transformer_decoder.build import TRANSFORMER_DECODER_REGISTRY
from panoptic_ext.modeling.transformer_decoder.masked_transformer_decoder import (
    MultiScaleMaskedTransformerDecoder,
    Queries,
)
from panoptic_ext.modeling.transformer_decoder.outputs import Places

__all__ = [
    "PlacedQueryTransformerDecoder",
    "coordinate_maps",
    "distinct_first",
    "peaks",
    "window_coefficients",
]

# The unit of coordinates and of half sides of boxes, in cells of the mask resolution. In this unit
# the polynomials of the windows have coefficients of moderate size.
CELLS_PER_UNIT = 32
INITIAL_HALF_SIDE = 0.2  # half the side of a box before training, units
LEAST_HALF_SIDE, GREATEST_HALF_SIDE = 0.02, 50.0  # units; predicted half sides are clamped to these
# Radius of a window in half sides of its box: between the ellipses in the box (1) and around it
# (the square root of 2).
WINDOW_RADIUS = 1.2
WINDOW_HEIGHT = 2.0  # logit in the middle of a window, which falls to 0 at its radius
# A peak this close to the centre of a better peak's box (in half sides) is the same object.
DUPLICATE_RADIUS = 1.0
PEAKS_PER_QUERY = 2  # candidates, so that enough remain after duplicates are discarded
CENTRE_PRIOR = 0.05  # probability of a centre before training, as RetinaNet starts its classes


def coordinate_maps(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """(5, height, width) float32: 1, x, y, x^2, y^2 at the middle of each cell, in units of
    `CELLS_PER_UNIT` from the middle of the map."""
    y, x = (
        (torch.arange(cells, dtype=torch.float32, device=device) + (0.5 - cells / 2))
        / CELLS_PER_UNIT
        for cells in (height, width)
    )
    y, x = y[:, None].expand(height, width), x[None].expand(height, width)
    return torch.stack((torch.ones_like(x), x, y, x * x, y * y))


def window_coefficients(middle: Tensor, radius: Tensor) -> Tensor:
    """Coefficients of WINDOW_HEIGHT * (1 - |(p - middle) / radius|^2) for `coordinate_maps`.

    Args:
        middle, radius: (..., 2) float32, x and y.

    Returns:
        (..., 5).
    """
    squares = -WINDOW_HEIGHT / radius.square()
    linear = -2 * squares * middle
    constant = WINDOW_HEIGHT + (squares * middle.square()).sum(-1, keepdim=True)
    return torch.cat((constant, linear, squares), dim=-1)


def peaks(heat: Tensor, count: int) -> Tensor:
    """Find the highest of the cells that none of their eight neighbours exceeds.

    If there are fewer than `count`, the lowest of the other cells fill up the rest. High cells lie
    next to a peak, and a query there would be a duplicate.

    Args:
        heat: (B, 1, h, w).
        count: Q; fewer where the map has fewer cells.

    Returns:
        (B, Q) int64 flat positions, best first.
    """
    heat = heat.detach().float()
    is_peak = F.max_pool2d(heat, kernel_size=3, stride=1, padding=1) == heat
    # Peaks get 1 to 2, all other cells -1 to 0. One selection then takes the peaks, highest first,
    # before the other cells, lowest first.
    flat = torch.where(is_peak, 1 + heat.sigmoid(), -heat.sigmoid()).flatten(1)
    return flat.topk(min(count, flat.shape[1]), dim=1).indices


def distinct_first(positions: Tensor, places: Tensor, boxes: Tensor, count: int) -> Tensor:
    """Choose the first positions that do not lie in the box of an earlier one.

    Large objects have several peaks. As in Fast NMS (YOLACT, Bolya et al., ICCV 2019) all pairs are
    compared at once, so that a discarded place may still discard others. If fewer than `count`
    remain, duplicates fill up the rest, lowest ranked first.

    Args:
        positions: (B, N) int64, best first.
        places: (B, N, 2), where each of them is.
        boxes: (B, N, 4), middle and half sides of the box of each, in the same unit. A place lies
            in a box if it lies in the ellipse that fills the box, because another object may lie in
            the box's corner.
        count: Q.

    Returns:
        (B, Q) of the positions.
    """
    middle, half = boxes[:, :, None].chunk(2, dim=-1)
    inside = ((places[:, None] - middle) / half).square().sum(-1) < DUPLICATE_RADIUS**2
    is_duplicate = inside.triu(diagonal=1).any(dim=1)
    order = torch.arange(positions.shape[1], device=positions.device)
    # Duplicates rank N + 1 to 2N in reverse order, behind all others.
    rank = torch.where(is_duplicate, 2 * len(order) - order, order)
    return positions.gather(1, rank.argsort(dim=1)[:, :count])


def _bounded(growth: Tensor) -> Tensor:
    """Clamp log(half side / INITIAL_HALF_SIDE) to the least and the greatest half side."""
    return growth.clamp(
        math.log(LEAST_HALF_SIDE / INITIAL_HALF_SIDE),
        math.log(GREATEST_HALF_SIDE / INITIAL_HALF_SIDE),
    )


def _convolutions(channels: int, count: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += [nn.Conv2d(channels, channels, kernel_size=3, padding=1), nn.ReLU()]
    return layers


def _at(maps: Tensor, positions: Tensor) -> Tensor:
    """(B, D, h, w) at (B, Q) flat positions -> (B, Q, D)."""
    return maps.flatten(2).gather(2, positions[:, None].expand(-1, maps.shape[1], -1)).mT


@TRANSFORMER_DECODER_REGISTRY.register()
class PlacedQueryTransformerDecoder(MultiScaleMaskedTransformerDecoder):
    """Mask2Former's decoder with queries at centres of things, and the class of every pixel.

    Its outputs have `semantic_logits` and `places`, see `DecoderOutputs`.
    """

    places_queries = True
    class_layers: ClassVar[Mapping[str, ClassLayer]] = {
        **MultiScaleMaskedTransformerDecoder.class_layers,
        "semantic_head.2": ClassLayer(),
    }

    @configurable
    def __init__(self, *, num_queries: int, **kwargs: Any) -> None:
        """Args (all by keyword):

        num_queries: Q; no parameter depends on it, so that it may be changed for inference.
        kwargs: of `MultiScaleMaskedTransformerDecoder`.
        """
        # The parent's learned queries are not used: places take their part.
        super().__init__(num_queries=1, **kwargs)
        del self.query_feat, self.query_embed
        dim, mask_dim = kwargs["hidden_dim"], kwargs["mask_dim"]
        self.num_queries = num_queries
        self.semantic_head = nn.Sequential(
            *_convolutions(mask_dim, 1), nn.Conv2d(mask_dim, kwargs["num_classes"], kernel_size=1)
        )
        self.place_head = nn.Sequential(
            *_convolutions(mask_dim, 1), nn.Conv2d(mask_dim, 1, kernel_size=1)
        )
        nn.init.constant_(self.place_head[-1].bias, math.log(CENTRE_PRIOR / (1 - CENTRE_PRIOR)))
        self.box_head = nn.Sequential(
            *_convolutions(mask_dim, 2), nn.Conv2d(mask_dim, 4, kernel_size=1)
        )
        # Zeros: every cell begins with a box of INITIAL_HALF_SIDE around itself, and every window
        # begins as its box.
        nn.init.zeros_(self.box_head[-1].weight)
        nn.init.zeros_(self.box_head[-1].bias)
        self.place_feat = nn.Sequential(nn.Linear(mask_dim, dim), nn.LayerNorm(dim))
        self.place_embed = nn.Embedding(1, dim)
        self.window_embed = nn.Linear(dim, 4)
        nn.init.zeros_(self.window_embed.weight)
        nn.init.zeros_(self.window_embed.bias)

    @classmethod
    def from_config(cls, cfg: Any, in_channels: int) -> dict[str, Any]:
        count = cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES
        if count < 1:
            raise ConfigError(
                f"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES is {count}, expected 1 or more"
            )
        if mask_former_task(cfg) == "semantic":
            raise ConfigError(
                "MODEL.MASK_FORMER.TASK is 'semantic', without objects to place queries on; set "
                "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME MultiScaleMaskedTransformerDecoder, as "
                "configs/common/mask2former/Base-Semantic-Small.yaml does"
            )
        if cfg.get("FLOAT32_PRECISION", "") in ("high", "medium"):
            raise ConfigError(
                f"FLOAT32_PRECISION is {cfg.FLOAT32_PRECISION!r}, but windows of placed queries "
                "are differences of large numbers; set it to '' or highest"
            )
        return super().from_config(cfg, in_channels)

    def _first_queries(self, mask_features: Tensor) -> Queries:
        """Queries at the peaks of the map of centres."""
        batch, _, height, width = mask_features.shape
        heat = self._heat(mask_features)
        shift, growth = self.box_head(mask_features).float().chunk(2, dim=1)
        maps = coordinate_maps(height, width, mask_features.device)
        middle = maps[1:3] + INITIAL_HALF_SIDE * shift
        side = INITIAL_HALF_SIDE * _bounded(growth).exp()
        # The choice of places has no gradient. The maps are trained by losses of their own, see
        # `PlacedCriterion`.
        box_map = torch.cat((middle, side), dim=1).detach()
        chosen = peaks(heat, PEAKS_PER_QUERY * self.num_queries)
        cells = maps[1:3].expand(batch, -1, -1, -1)
        chosen = distinct_first(chosen, _at(cells, chosen), _at(box_map, chosen), self.num_queries)

        dim = self.place_embed.embedding_dim
        position = sine_position_embedding(height, width, dim, mask_features.device).flatten(2)[0]
        extended = torch.cat((mask_features.float(), maps[None].expand(batch, -1, -1, -1)), dim=1)
        scale = maps.new_tensor([width / CELLS_PER_UNIT, height / CELLS_PER_UNIT])[:, None, None]
        boxes = torch.cat((middle / scale + 0.5, side / scale), dim=1)
        places = _at(cells, chosen) / scale[:, 0, 0] + 0.5
        return Queries(
            features=self.place_feat(_at(mask_features, chosen)).to(self.place_embed.weight.dtype),
            embed=position[:, chosen].permute(1, 2, 0) + self.place_embed.weight,
            mask_features=extended,
            boxes=_at(box_map, chosen),
            semantic_logits=self.semantic_head(mask_features).float(),
            places=Places(places, heat, boxes),
        )

    def _heat(self, mask_features: Tensor) -> Tensor:
        """(B, 1, h, w) float32 logits of centres."""
        to_logits = self.place_head[-1]
        hidden = self.place_head[:-1](mask_features)
        # In float32, because bfloat16 would round neighbouring cells to equal values, and all of
        # them would be peaks.
        with torch.autocast(hidden.device.type, enabled=False):
            return to_logits(hidden.to(to_logits.weight.dtype))

    def _mask_embed(self, x: Tensor, queries: Queries) -> Tensor:
        assert queries.boxes is not None
        embed = super()._mask_embed(x, queries)
        middle, side = queries.boxes.chunk(2, dim=-1)
        shift, growth = self.window_embed(x).float().chunk(2, dim=-1)
        radius = WINDOW_RADIUS * side * _bounded(growth).exp()
        window = window_coefficients(middle + side * shift, radius)
        # Far from the middle, the terms of a window are large and nearly cancel. They need float32,
        # which `QueryMasks` keeps for the masks.
        return torch.cat((embed.float(), window), dim=-1)
