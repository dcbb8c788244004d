"""Bipartite matching of queries and targets.

Shapes: O outputs of a decoder, of which o are computed together, B images, Q queries, K classes,
N targets of an image, P points, h x w predicted masks.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from panoptic_ext.errors import DatasetError, NonFiniteLossError
from panoptic_ext.modeling.mask_classification.losses import class_cost, mask_costs
from panoptic_ext.modeling.mask_classification.points import common_points
from panoptic_ext.modeling.mask_classification.query_masks import masks_at_points
from panoptic_ext.modeling.mask_classification.targets import MaskTargets
from panoptic_ext.modeling.transformer_decoder.outputs import Predictions

__all__ = ["HungarianMatcher", "Match"]

Match = tuple[Tensor, Tensor]
"""Matched queries and targets of one image: two (M,) int64 tensors on the CPU."""

logger = logging.getLogger(__name__)


class HungarianMatcher(nn.Module):
    """Find the cheapest one-to-one assignment of queries to targets.

    The cost of a pair is `class_weight * -p(class) + mask_weight * BCE + dice_weight * Dice`. BCE
    and Dice are computed at `num_points` random points of an image, of which the share
    `box_sample_ratio` lies in the targets' boxes. Each output of the decoder draws its own points,
    as in the published code. With `shared_points` all outputs use one draw. The cost of each output
    is as random as before, but more outputs match a target to the same query, and the features are
    sampled once. `queries_key` is the config key that the warning of too few queries names.
    """

    def __init__(
        self,
        *,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        num_points: int = 12544,
        box_sample_ratio: float = 0.0,
        shared_points: bool = False,
        queries_key: str = "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES",
    ) -> None:
        super().__init__()
        self.weights = (class_weight, mask_weight, dice_weight)
        self.num_points = num_points
        self.box_sample_ratio = box_sample_ratio
        self.shared_points = shared_points
        self.queries_key = queries_key
        self._surplus_reported = False

    @torch.no_grad()
    def forward(
        self,
        outputs: Sequence[Predictions],
        targets: Sequence[MaskTargets],
        avoided: Sequence[Tensor] | None = None,
    ) -> list[list[Match]]:
        """Match all outputs and images, with one copy to the host.

        Args:
            outputs: of a decoder, the final one first.
            targets: of each image.
            avoided: of each image (Q, N) bool, pairs of query and target that are avoided as long
                as any other assignment exists.

        Returns:
            For each output, for each image, (queries, targets), as many as the smaller of Q and N.

        Raises:
            DatasetError: a label is outside the classes; names the image.
            NonFiniteLossError: a cost is NaN or infinite; names the term.
        """
        # Imported here, because importing SciPy's optimize changes Python's warning filters.
        from scipy.optimize import linear_sum_assignment

        num_queries, num_logits = outputs[0].pred_logits.shape[1:]
        with torch.autocast(outputs[0].pred_masks.device.type, enabled=False):
            costs = self._costs(outputs, targets, avoided)
        # The assignment is computed on the host. All costs and labels go there in one copy, because
        # the host waits for the device at every copy.
        labels = [target.labels.to(costs[0].device, torch.float32) for target in targets]
        host = torch.cat([part.reshape(-1) for part in [*costs, *labels]]).cpu().numpy()
        sizes = [cost.numel() for cost in costs] + [len(target) for target in targets]
        pieces = np.split(host, np.cumsum(sizes)[:-1])
        self._check_labels(pieces[len(costs) :], targets, num_logits - 1)
        self._warn_of_surplus(num_queries, targets)
        on_host = [piece.reshape(cost.shape) for piece, cost in zip(pieces, costs, strict=False)]
        matches: list[list[Match]] = []
        for number in range(len(outputs)):
            matches.append([])
            for image, cost in enumerate(on_host):
                if not np.isfinite(cost[number]).all():
                    raise self._non_finite(outputs, targets, number, image)
                queries, rows = linear_sum_assignment(cost[number])
                matches[-1].append((torch.from_numpy(queries), torch.from_numpy(rows)))
        return matches

    def _costs(
        self,
        outputs: Sequence[Predictions],
        targets: Sequence[MaskTargets],
        avoided: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Costs (O, Q, N) of each image, on the outputs' device."""
        logits = torch.stack([output.pred_logits for output in outputs])
        costs = []
        for image, target in enumerate(targets):
            draws = 1 if self.shared_points else len(outputs)
            points = common_points(target, self.num_points, self.box_sample_ratio, draws)
            sampled = target.sample(points.flatten(0, 1)).unflatten(1, points.shape[:2])
            sampled = sampled.transpose(0, 1)
            blocks, first = [], 0
            for masks in masks_at_points(outputs, image, points):
                block = slice(first, first + len(masks))
                at_points = sampled[block] if draws > 1 else sampled
                terms = self._terms(logits[block, image], masks, target.labels, at_points)
                blocks.append(sum(terms[1:], start=terms[0]))
                first = block.stop
            joined = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
            costs.append(joined if avoided is None else _penalise(joined, avoided[image]))
        return costs

    def _terms(
        self, logits: Tensor, at_points: Tensor, labels: Tensor, sampled: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The three weighted terms of the cost, (o, Q, N) each.

        Args:
            logits: (o, Q, K + 1).
            at_points: (o, Q, P) mask logits.
            labels: (N,).
            sampled: (1 or o, N, P) targets at the same points.
        """
        bce, dice = mask_costs(at_points, sampled)
        # Wrong labels are reported once they are on the host. Until then they are clamped, because
        # an index out of range would end the CUDA context.
        known = labels.to(logits.device).clamp(0, logits.shape[-1] - 2)
        scale_class, scale_mask, scale_dice = self.weights
        return scale_class * class_cost(logits, known), scale_mask * bce, scale_dice * dice

    def _non_finite(
        self,
        outputs: Sequence[Predictions],
        targets: Sequence[MaskTargets],
        number: int,
        image: int,
    ) -> NonFiniteLossError:
        """Return the error, which names the terms at fault."""
        target, output = targets[image], outputs[number]
        points = common_points(target, self.num_points, self.box_sample_ratio)
        with torch.autocast(points.device.type, enabled=False):
            (at_points,) = masks_at_points([output], image, points)
            sampled = target.sample(points[0])[None]
            logits = output.pred_logits[None, image]
            terms = self._terms(logits, at_points, target.labels, sampled)
        named = zip(("classification", "mask (BCE)", "Dice"), terms, strict=True)
        bad = [name for name, term in named if not torch.isfinite(term).all()]
        # The points are drawn anew and may miss the one bad pixel. Class costs need no points, so
        # the fault is then in the masks.
        bad = bad or ["mask (BCE)", "Dice"]
        return NonFiniteLossError(
            f"the matching cost of image {_name(target, image)} in decoder output {number} "
            f"(0 is the final one) is NaN or infinite; at fault: {' and '.join(bad)}. "
            "Expected finite predictions: lower SOLVER.BASE_LR, clip gradients "
            "(SOLVER.CLIP_GRADIENTS) or train in bf16 or fp32 instead of fp16"
        )

    def _check_labels(
        self, labels: Sequence[np.ndarray], targets: Sequence[MaskTargets], num_classes: int
    ) -> None:
        for image, (values, target) in enumerate(zip(labels, targets, strict=True)):
            wrong = values[(values < 0) | (values >= num_classes)]
            if len(wrong):
                raise DatasetError(
                    f"image {_name(target, image)} has label {int(wrong[0])}; expected 0 to "
                    f"{num_classes - 1}. Set MODEL.SEM_SEG_HEAD.NUM_CLASSES to the number of "
                    "categories of the data set, or mend its category ids"
                )

    def _warn_of_surplus(self, num_queries: int, targets: Sequence[MaskTargets]) -> None:
        if self._surplus_reported:
            return
        for image, target in enumerate(targets):
            if len(target) > num_queries:
                self._surplus_reported = True
                logger.warning(
                    "image %s has %d objects but the model %d queries: %d of them are not "
                    "learnt. Raise %s; further images are not reported",
                    _name(target, image),
                    len(target),
                    num_queries,
                    len(target) - num_queries,
                    self.queries_key,
                )
                return


def _penalise(cost: Tensor, avoided: Tensor) -> Tensor:
    """Raise the cost (O, Q, N) of avoided pairs (Q, N) so far that any assignment with fewer of
    them is cheaper."""
    if not cost.numel():
        return cost
    # The penalty is finite, because SciPy refuses infinite costs that no assignment can avoid.
    # Without it two assignments of min(Q, N) pairs differ by at most min(Q, N) times the spread of
    # the costs; one penalty is more than that.
    spread = cost.amax((1, 2), keepdim=True) - cost.amin((1, 2), keepdim=True)
    return cost + avoided * ((spread + 1) * min(cost.shape[1:]))


def _name(target: MaskTargets, image: int) -> str:
    return target.image or f"number {image} of the batch"
