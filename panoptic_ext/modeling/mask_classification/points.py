"""Draw the points at which masks are compared: for matching, and for the loss.

Shapes: M masks or targets, P points, h x w predicted masks. Points are (x, y) in [0, 1], see
`bilinear`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from panoptic_ext.modeling.mask_classification.bilinear import sample_masks
from panoptic_ext.modeling.mask_classification.targets import MaskTargets

__all__ = ["common_points", "points_in_boxes", "uncertain_points"]

# Side of the region around a box in which points are drawn, in sides of the box. With 1.5, no
# points fell on the neighbours of small objects: masks that spilled onto them were not penalised.
BOX_REGION_SCALE = 3.0


def _smallest(values: Tensor, count: int) -> Tensor:
    """Indices (M, count) int64 of the `count` smallest of each row of (M, P), in no order."""
    if values.is_cuda or not 0 < count < values.shape[1]:
        return values.topk(count, dim=1, largest=False, sorted=False).indices
    # NumPy's selection is vectorised and takes a fifth of the time of torch's.
    parted = np.argpartition(values.numpy(), count - 1, axis=1)[:, :count]
    return torch.from_numpy(np.ascontiguousarray(parted))


def points_in_boxes(boxes: Tensor, count: int) -> Tensor:
    """Draw uniform points in and around boxes, in regions three times as wide and as high.

    Of 2048 points drawn in the whole image, only 5 fall on a window of 16 x 16 pixels in 320 x 320.
    Of 2048 points drawn in this window's region, about 230 fall on it and the others around it.

    Args:
        boxes: (M, 4) x0, y0, x1, y1 in [0, 1].
        count: points of each.

    Returns:
        (M, count, 2) float32 in [0, 1].
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    middle, reach = (low + high) / 2, (high - low) * (BOX_REGION_SCALE / 2)
    # The region is clipped, not the points: points moved onto the border would pile up there, where
    # sampling mixes the mask with the zeros beyond it.
    low, high = (middle - reach).clamp(min=0), (middle + reach).clamp(max=1)
    points = torch.rand(len(boxes), count, 2, device=boxes.device)
    return low[:, None] + points * (high - low)[:, None]


def common_points(target: MaskTargets, num_points: int, box_ratio: float, draws: int = 1) -> Tensor:
    """Draw points (draws, P, 2) of an image at which all its masks are compared.

    Args:
        target: the image's targets.
        num_points: P.
        box_ratio: share of the points that is drawn in the targets' boxes, the same number in each
            but for a remainder. The other points are drawn in the whole image.
        draws: how many sets of points are drawn.
    """
    num_in_boxes = int(num_points * box_ratio) if len(target) else 0
    device = target.labels.device
    anywhere = torch.rand(draws, num_points - num_in_boxes, 2, device=device)
    if not num_in_boxes:
        return anywhere
    rounds = -(-num_in_boxes // len(target))
    # Ordered by rounds of one point in each box, so that only points of the last round are cut off.
    in_boxes = points_in_boxes(target.boxes(), draws * rounds).transpose(0, 1)
    in_boxes = in_boxes.reshape(draws, -1, 2)[:, :num_in_boxes]
    return torch.cat((anywhere, in_boxes), dim=1)


def uncertain_points(
    masks: Tensor, num_points: int, *, oversample_ratio: float, importance_sample_ratio: float
) -> Tensor:
    """Draw points for the loss: mostly where the prediction is uncertain, some anywhere.

    Each mask gets `oversample_ratio * num_points` random candidates. The
    `importance_sample_ratio * num_points` of them with the smallest |logit| are kept. The other
    points are drawn anew (PointRend, section 3.1).

    Args:
        masks: (M, h, w) logits.
        num_points: P, points a mask.
        oversample_ratio: candidates for each point, at least 1.
        importance_sample_ratio: share of the points chosen by uncertainty, 0 to 1.

    Returns:
        (M, P, 2) float32.
    """
    count = len(masks)
    num_candidates = int(num_points * oversample_ratio)
    num_important = int(num_points * importance_sample_ratio)
    candidates = torch.rand(count, num_candidates, 2, device=masks.device)
    # The uncertainty is that of the sampled logit, not a sample of the pixels' uncertainties: two
    # neighbours with logits -9 and 9 are both certain, but the point between them is not.
    with torch.no_grad():
        certainty = sample_masks(masks.detach().float(), candidates).abs()
        chosen = _smallest(certainty, num_important)
    important = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
    # Where a mask is certain but wrong, no point is uncertain. Points drawn anywhere reach it.
    anywhere = torch.rand(count, num_points - num_important, 2, device=masks.device)
    return torch.cat((important, anywhere), dim=1)
