"""OANet's learned ranking of overlapping instances, as a head and as a fusion that owns it.

Source: Liu et al., "An End-to-End Network for Panoptic Segmentation", CVPR 2019, section 3.3.
Shapes: see panoptic_ext.fusion.ranking_map; K classes, T of them things, B images.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor, nn

from panoptic_ext.errors import ConfigError
from panoptic_ext.fusion.base import (
    PANOPTIC_FUSION_REGISTRY,
    Detections,
    FusionRule,
    PanopticFusion,
    PanopticMap,
)
from panoptic_ext.fusion.heuristic import heuristic_fusion
from panoptic_ext.fusion.ranking_map import (
    class_channels,
    reduced_labels,
    reduced_masks,
    reduced_size,
    spatial_ranking_scores,
)
from panoptic_ext.postprocessing.tiled_resize import Size

__all__ = ["SpatialRankingFusion", "SpatialRankingHead"]

_IGNORED = -100  # label of cells without a thing


class LargeKernelConv(nn.Module):
    """A k x k convolution as the sum of k x 1 after 1 x k and 1 x k after k x 1, then ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        tall = {"kernel_size": (kernel_size, 1), "padding": (kernel_size // 2, 0)}
        wide = {"kernel_size": (1, kernel_size), "padding": (0, kernel_size // 2)}
        self.tall_first, self.wide_first = (
            nn.Sequential(
                nn.Conv2d(in_channels, out_channels, **first),
                nn.Conv2d(out_channels, out_channels, **second),
            )
            for first, second in ((tall, wide), (wide, tall))
        )
        for conv in (*self.tall_first, *self.wide_first):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> (B, out_channels, h, w)."""
        return F.relu(self.tall_first(x) + self.wide_first(x))


class SpatialRankingHead(nn.Module):
    """From the masks of overlapping instances, by class, to which class each cell belongs to.

    An untrained head gives the same probability to all: it ranks all instances alike.
    """

    def __init__(
        self,
        *,
        num_things: int,
        conv_dim: int = 64,
        num_convs: int = 2,
        kernel_size: int = 7,
        map_size: int = 128,
    ) -> None:
        """
        Args:
            num_things: T.
            conv_dim: channels within.
            num_convs: large-kernel convolutions, at least 1.
            kernel_size: of them, in cells; odd.
            map_size: cells of the map's longer side.

        Raises:
            ConfigError: a number that is too small, or an even kernel.
        """
        super().__init__()
        for name, value in (
            ("CONV_DIM", conv_dim),
            ("NUM_CONVS", num_convs),
            ("KERNEL_SIZE", kernel_size),
            ("MAP_SIZE", map_size),
        ):
            if value < 1 or (name == "KERNEL_SIZE" and value % 2 == 0):
                raise ConfigError(
                    f"MODEL.PANOPTIC_FUSION.SPATIAL_RANKING.{name} is {value}; expected "
                    + ("an odd number" if name == "KERNEL_SIZE" else "1 or more")
                )
        self.num_things, self.map_size = num_things, map_size
        dims = [num_things] + [conv_dim] * num_convs
        self.convs = nn.Sequential(*(LargeKernelConv(i, o, kernel_size) for i, o in pairwise(dims)))
        self.predictor = nn.Conv2d(conv_dim, num_things, 1)
        # All logits are 0 before training, so that the merging begins as that by score.
        nn.init.zeros_(self.predictor.weight)
        nn.init.zeros_(self.predictor.bias)

    def forward(self, channels: Tensor) -> Tensor:
        """Give each cell logits of the thing classes.

        Args:
            channels: (B, T, h, w) of `class_channels`.

        Returns:
            (B, T, h, w).
        """
        return self.predictor(self.convs(channels))

    @torch.no_grad()
    def rank(
        self, *, boxes: Tensor, classes: Tensor, mask_logits: Tensor, image_size: Size
    ) -> Tensor:
        """Rank the instances of one image.

        Args:
            boxes: (N, 4) x1, y1, x2, y2 in pixels of the image.
            classes: (N,) int64 thing indices.
            mask_logits: (N, m, m) of that class in the box.
            image_size: (H, W).

        Returns:
            (N,) float64 in 0..1, see `spatial_ranking_scores`.
        """
        masks = self._masks(boxes, mask_logits, image_size)
        probabilities = self._logits(masks, classes).float().softmax(0)
        return spatial_ranking_scores(probabilities, masks, classes)

    def losses(
        self,
        *,
        boxes: Sequence[Tensor],
        classes: Sequence[Tensor],
        mask_logits: Sequence[Tensor],
        image_size: Sequence[Size],
        target: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Cross-entropy of each cell with the class that is really there; L_srm of the paper.

        Args:
            boxes, classes, mask_logits, image_size: of each image, as `rank` takes them. No
                gradient flows into them.
            target: (H, W) int64 thing index of each pixel; others than 0..T-1 are ignored.

        Returns:
            "loss_spatial_ranking": mean over the cells of all images that show a thing; 0, with
            a gradient of 0, where none does.
        """
        sums, counts = [], []
        for image, boxes_of_image in enumerate(boxes):
            masks = self._masks(boxes_of_image, mask_logits[image], image_size[image])
            logits = self._logits(masks, classes[image]).float()
            labels = reduced_labels(target[image], (masks.shape[1], masks.shape[2])).long()
            known = (labels >= 0) & (labels < self.num_things)
            labels = labels.masked_fill(~known, _IGNORED)
            # Summed here and divided by the cells of all images below: an image with few things
            # weighs as few cells as it has. The term of 0 keeps a gradient where none is known.
            sums.append(
                F.cross_entropy(logits[None], labels[None], ignore_index=_IGNORED, reduction="sum")
                + logits.sum() * 0
            )
            counts.append(known.sum())
        if not sums:
            return {"loss_spatial_ranking": sum(p.sum() for p in self.parameters()) * 0}
        return {
            "loss_spatial_ranking": torch.stack(sums).sum() / torch.stack(counts).sum().clamp(min=1)
        }

    def _masks(self, boxes: Tensor, mask_logits: Tensor, image_size: Size) -> Tensor:
        size = reduced_size(image_size, self.map_size)
        return reduced_masks(boxes, mask_logits, image_size=image_size, size=size)

    def _logits(self, masks: Tensor, classes: Tensor) -> Tensor:
        return self(class_channels(masks, classes, self.num_things)[None])[0]


@PANOPTIC_FUSION_REGISTRY.register_as("spatial_ranking")
class SpatialRankingFusion(PanopticFusion):
    """The heuristic merging, in the order that a learned head gives the instances.

    Instances are selected by score. Overlaps are ordered by the head, ties by score. Placing is
    that of `heuristic_fusion`.

    It has parameters: `wants_training` is True, and a model that trains calls `training_losses`
    in every step and adds what it returns to its losses. Weights that were trained without
    it can be trained on with it, but not be evaluated: they would give what the heuristic gives.
    """

    wants_training: ClassVar[bool] = True
    needs_mask_logits: ClassVar[bool] = False

    @configurable
    def __init__(
        self,
        rule: FusionRule,
        *,
        conv_dim: int = 64,
        num_convs: int = 2,
        kernel_size: int = 7,
        map_size: int = 128,
        loss_weight: float = 1.0,
    ) -> None:
        """
        Args:
            rule: classes and thresholds.
            conv_dim, num_convs, kernel_size, map_size: as `SpatialRankingHead`.
            loss_weight: factor on its loss.

        Raises:
            ConfigError: a value that cannot be used.
        """
        super().__init__(rule)
        if not rule.thing_ids:
            raise ConfigError(
                "MODEL.PANOPTIC_FUSION.NAME is 'spatial_ranking', but the data set has no thing to "
                "rank; use 'heuristic'"
            )
        self.loss_weight = loss_weight
        self.head = SpatialRankingHead(
            num_things=len(rule.thing_ids),
            conv_dim=conv_dim,
            num_convs=num_convs,
            kernel_size=kernel_size,
            map_size=map_size,
        )
        thing_index = torch.full((rule.num_classes,), _IGNORED, dtype=torch.int64)
        thing_index[list(rule.thing_ids)] = torch.arange(len(rule.thing_ids))
        self.register_buffer("thing_index", thing_index, persistent=False)

    @classmethod
    def from_config(cls, cfg: Any, *, thing_ids: Collection[int]) -> dict[str, Any]:
        keys = cfg.MODEL.PANOPTIC_FUSION.SPATIAL_RANKING
        return {
            **super().from_config(cfg, thing_ids=thing_ids),
            "conv_dim": keys.CONV_DIM,
            "num_convs": keys.NUM_CONVS,
            "kernel_size": keys.KERNEL_SIZE,
            "map_size": keys.MAP_SIZE,
            "loss_weight": keys.LOSS_WEIGHT,
        }

    @torch.no_grad()
    def forward(self, sem_seg: Tensor, detections: Detections) -> PanopticMap:
        """See `PanopticFusion.forward`; `score` of a segment is the detection's."""
        self.rule.check_channels(sem_seg)
        # Best first: the merging, which sorts by rank, keeps this order among equals.
        order = detections.scores.argsort(descending=True, stable=True)
        order = order[detections.scores[order] >= self.rule.score_threshold]
        selected = detections[order]
        ranks = selected.scores.new_zeros(len(selected), dtype=torch.float64)
        if len(selected):
            ranks = self.head.rank(
                boxes=selected.boxes,
                classes=self.thing_index[selected.classes],
                mask_logits=selected.mask_logits,
                image_size=(sem_seg.shape[1], sem_seg.shape[2]),
            )
        # Instances have been selected by score; the merging takes all of them, whatever their rank.
        panoptic_map, segments = heuristic_fusion(
            sem_seg, replace(selected, scores=ranks), replace(self.rule, score_threshold=0.0)
        )
        rows, scores = order.tolist(), detections.scores.tolist()
        for segment in segments:
            if segment["isthing"]:
                segment["instance_id"] = rows[segment["instance_id"]]
                segment["score"] = scores[segment["instance_id"]]
        return panoptic_map, segments

    def training_losses(
        self,
        *,
        detections: Sequence[Detections],
        image_size: Sequence[Size],
        sem_seg_target: Sequence[Tensor] | Tensor,
    ) -> dict[str, Tensor]:
        """ "loss_spatial_ranking" of a batch; arguments as `PanopticFusion.training_losses`.

        What is given should look like what is merged later: overlapping masks of several classes.

        Raises:
            ValueError: labels smaller than their image.
        """
        targets = []
        for labels, (height, width) in zip(sem_seg_target, image_size, strict=True):
            if labels.shape[0] < height or labels.shape[1] < width:
                raise ValueError(
                    f"sem_seg_target is {tuple(labels.shape)} for an image of {(height, width)}; "
                    "expected labels at the resolution of the training image"
                )
            targets.append(self._thing_target(labels[:height, :width]))
        losses = self.head.losses(
            boxes=[each.boxes for each in detections],
            classes=[self.thing_index[each.classes] for each in detections],
            mask_logits=[each.mask_logits for each in detections],
            image_size=image_size,
            target=targets,
        )
        return {name: loss * self.loss_weight for name, loss in losses.items()}

    def _thing_target(self, labels: Tensor) -> Tensor:
        """Thing index of (H, W) contiguous ids; `_IGNORED` elsewhere."""
        known = (labels >= 0) & (labels < self.rule.num_classes)
        index = self.thing_index[labels.long() * known]
        return index.masked_fill(~known, _IGNORED)
