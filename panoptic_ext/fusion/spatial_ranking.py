"""OANet's learned ranking of overlapping instances: the head, and the fusion that holds it.

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

_IGNORED = -100  # label of cells that show no thing; the loss ignores them


class LargeKernelConv(nn.Module):
    """A k x k convolution as a sum of two branches, 1 x k after k x 1 and k x 1 after 1 x k; ReLU.

    Source: Peng et al., "Large Kernel Matters", CVPR 2017, without the ReLU.
    """

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
    """Predicts which thing class each cell shows, from one channel of masks per class.

    An untrained head gives all classes the same probability, and so all instances the same rank.
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
            conv_dim: channels of the hidden layers.
            num_convs: number of large-kernel convolutions, at least 1.
            kernel_size: of these convolutions, in cells; odd.
            map_size: cells on the map's longer side.

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
        # All logits are 0 at first, so that an untrained head leaves the order of the scores.
        nn.init.zeros_(self.predictor.weight)
        nn.init.zeros_(self.predictor.bias)

    def forward(self, channels: Tensor) -> Tensor:
        """Give each cell logits of the thing classes.

        Args:
            channels: (B, T, h, w), from `class_channels`.

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
        """Cross-entropy between each cell's logits and its true class; L_srm of the paper.

        Args:
            boxes, classes, mask_logits, image_size: for each image the arguments of `rank`. No
                gradient flows into them.
            target: (H, W) int64 thing index of each pixel; values outside 0..T-1 are ignored.

        Returns:
            "loss_spatial_ranking": mean over those cells of all images that show a thing; 0, with
            a gradient of 0, if no cell does.
        """
        sums, counts = [], []
        for image, boxes_of_image in enumerate(boxes):
            masks = self._masks(boxes_of_image, mask_logits[image], image_size[image])
            logits = self._logits(masks, classes[image]).float()
            labels = reduced_labels(target[image], (masks.shape[1], masks.shape[2])).long()
            shows_thing = (labels >= 0) & (labels < self.num_things)
            labels = labels.masked_fill(~shows_thing, _IGNORED)
            # The sums are divided by the number of cells of the whole batch below: every cell has
            # the same weight, so that an image with few things weighs little. The term of 0 gives
            # all parameters a gradient even if no cell shows a thing.
            sums.append(
                F.cross_entropy(logits[None], labels[None], ignore_index=_IGNORED, reduction="sum")
                + logits.sum() * 0
            )
            counts.append(shows_thing.sum())
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
    """The heuristic merging, with the instances in the order of a learned rank.

    Instances are selected by score. Overlaps are ordered by the head's rank, ties by score. The
    instances are then placed as in `heuristic_fusion`.

    A checkpoint that was trained without this fusion can be used to train further with it, but not
    to evaluate it: an untrained head would give the result of `heuristic_fusion`.
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
            conv_dim, num_convs, kernel_size, map_size: see `SpatialRankingHead`.
            loss_weight: factor on the head's loss.

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
        # By descending score: `heuristic_fusion` sorts by rank and keeps this order in a tie.
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
        # The rank takes the place of the score. Its threshold is 0, because the instances have been
        # selected by their real scores above.
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

        The instances should resemble those of inference: overlapping masks of several classes.

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
        valid = (labels >= 0) & (labels < self.rule.num_classes)
        index = self.thing_index[labels.long() * valid]
        return index.masked_fill(~valid, _IGNORED)
