"""From class and mask logits of queries to panoptic, semantic and instance segmentation.

Shapes: B images, Q queries, K classes (class K is "no object"), n kept queries, h x w mask logits,
H x W output. Sizes are (height, width) in pixels: `padded_size` is that of the input that the masks
cover, `image_size` that of the input without padding, `output_size` that of the result.

Every function resizes with `TiledResize` and never holds Q x H x W values. A mask logit that is NaN
counts as outside the mask, an infinite one as the largest finite value of float16. Source: Cheng et
al., "Masked-attention Mask Transformer", and the steps of the published model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from torch import Tensor

from panoptic_ext.host_copies import to_device
from panoptic_ext.postprocessing.mask_outputs import (
    InstancePixels,
    MaskOutputs,
    PanopticPixels,
    Pixels,
    SemanticPixels,
    collect,
)
from panoptic_ext.postprocessing.query_indices import union
from panoptic_ext.postprocessing.query_segments import KeptQuery, segments_of_queries
from panoptic_ext.postprocessing.tiled_resize import Size

if TYPE_CHECKING:
    from typing_extensions import Unpack  # of typing from Python 3.11 on

__all__ = [
    "LazyMasks",
    "Sizes",
    "instance_inference",
    "mask_inference",
    "panoptic_inference",
    "semantic_inference",
]


class Sizes(TypedDict):
    """The three sizes of one image; see the module's docstring."""

    image_size: Size
    padded_size: Size
    output_size: Size


class LazyMasks(Protocol):
    """(B, Q, h, w) mask logits that are computed when they are read."""

    def rows(self, image: int, queries: Tensor) -> Tensor:
        """(n, h, w) of the queries (n,) int64 of one image; they have the device of the result."""
        ...


@torch.no_grad()
def mask_inference(
    mask_cls: Tensor,
    mask_pred: Tensor | LazyMasks,
    sizes: Sequence[Sizes],
    wanted: MaskOutputs,
) -> list[dict[str, Any]]:
    """Compute all wanted outputs of a batch.

    On a GPU the masks of an image are resized once, and the host waits twice for the whole batch.

    Args:
        mask_cls: (B, Q, K + 1) logits.
        mask_pred: (B, Q, h, w) logits. Lazy ones are computed for the queries that an output needs;
            most queries of a panoptic image are "no object".
        sizes: of each image.
        wanted: the outputs to compute.

    Returns:
        For each image a dict of those of "sem_seg", "panoptic_seg" and "instances" that are wanted;
        see `semantic_inference`, `panoptic_inference` and `instance_inference`.
    """
    with torch.autocast(mask_cls.device.type, enabled=False):
        probabilities = mask_cls.float().softmax(-1)
        choices = _choose(probabilities, wanted)
        images = [
            _Image(
                probabilities[i],
                mask_pred[i] if isinstance(mask_pred, Tensor) else partial(mask_pred.rows, i),
                sizes[i],
                choice,
                wanted,
            )
            for i, choice in enumerate(choices)
        ]
        things = None
        if wanted.panoptic:
            things = _thing_table(wanted.thing_ids, mask_cls.shape[-1] - 1)
        # First the tiles of all images, then one copy: the host waits once for all counts.
        counts = _counts_on_host([image.panoptic for image in images])
        results: list[dict[str, Any]] = []
        for image, image_counts in zip(images, counts, strict=True):
            result: dict[str, Any] = {}
            if image.semantic is not None:
                result["sem_seg"] = image.semantic_scores()
            if things is not None:
                result["panoptic_seg"] = image.segments(
                    image_counts, things, wanted.overlap_threshold
                )
            if image.instances is not None:
                result["instances"] = image.detected_instances()
            results.append(result)
    return results


def panoptic_inference(
    mask_cls: Tensor,
    mask_pred: Tensor,
    *,
    thing_ids: Collection[int] | Tensor,
    object_mask_threshold: float,
    overlap_threshold: float,
    **sizes: Unpack[Sizes],
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Give each pixel to the kept query with the largest class score x sigmoid(mask logit).

    Args:
        mask_cls: (Q, K + 1) logits.
        mask_pred: (Q, h, w) logits.
        thing_ids: the thing classes, or a bool table (K,).
        object_mask_threshold: queries whose class score is not above it are ignored.
        overlap_threshold: a query that wins less than this share of its own mask is discarded.
        **sizes: see `Sizes`.

    Returns:
        (H, W) int32 map of segment ids, 0 for void, and for each segment a dict of `id` (from 1),
        `isthing`, `category_id`, `score` (class probability; the largest one if several queries
        share a stuff segment) and `area` (pixels).
    """
    wanted = MaskOutputs(
        panoptic=True,
        thing_ids=thing_ids,
        object_mask_threshold=object_mask_threshold,
        overlap_threshold=overlap_threshold,
    )
    return mask_inference(mask_cls[None], mask_pred[None], [sizes], wanted)[0]["panoptic_seg"]


def semantic_inference(
    mask_cls: Tensor,
    mask_pred: Tensor,
    *,
    resize_first: bool = True,
    **sizes: Unpack[Sizes],
) -> Tensor:
    """Compute class scores: the sum over queries of p(class) x sigmoid(mask logit).

    Args:
        mask_cls: (Q, K + 1) logits.
        mask_pred: (Q, h, w) logits.
        resize_first: whether masks are resized to the output before scores are computed. Otherwise
            scores are computed at the input's size and then resized.
        **sizes: see `Sizes`.

    Returns:
        (K, H, W) float32; on a CPU in channels_last memory layout.
    """
    wanted = MaskOutputs(semantic=True, resize_first=resize_first)
    return mask_inference(mask_cls[None], mask_pred[None], [sizes], wanted)[0]["sem_seg"]


def instance_inference(
    mask_cls: Tensor,
    mask_pred: Tensor,
    *,
    top_k: int,
    thing_ids: Collection[int] | Tensor | None = None,
    **sizes: Unpack[Sizes],
) -> Instances:
    """Turn the best pairs of query and class into instances.

    Args:
        mask_cls: (Q, K + 1) logits.
        mask_pred: (Q, h, w) logits.
        top_k: number of pairs with the highest class scores to take.
        thing_ids: if given, those of the `top_k` pairs that have another class are discarded.
        **sizes: see `Sizes`.

    Returns:
        Instances of the output size, by descending class score: `pred_masks` (N, H, W) bool (logit
        above 0), `pred_boxes` around them (zeros for an empty mask), `scores` (class score x mean
        mask probability inside the mask), `pred_classes`.
    """
    wanted = MaskOutputs(instances=True, thing_ids=thing_ids, top_k=top_k)
    return mask_inference(mask_cls[None], mask_pred[None], [sizes], wanted)[0]["instances"]


@dataclass(frozen=True)
class _Choice:
    """The queries of an image that outputs are computed from.

    Attributes:
        kept: (n,) int64, queries that may become segments, ascending.
        classes, scores: (n,) of these queries.
        pairs: (N,) int64, pairs of query and class that become instances: query * K + class.
        pair_scores: (N,) of these pairs.
    """

    kept: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    pairs: np.ndarray
    pair_scores: np.ndarray


def _choose(probabilities: Tensor, wanted: MaskOutputs) -> list[_Choice]:
    """Choose queries for each image; one copy to the host, or none for class scores alone.

    Args:
        probabilities: (B, Q, K + 1).
    """
    num_classes = probabilities.shape[-1] - 1
    parts: list[Tensor] = []
    lengths = [0, 0, 0, 0]
    if wanted.panoptic:
        parts += probabilities.max(-1)
        lengths[:2] = [probabilities.shape[1]] * 2
    if wanted.instances:
        pairs = probabilities[..., :-1].flatten(1)
        parts += pairs.topk(min(wanted.top_k, pairs.shape[1]))
        lengths[2:] = [parts[-1].shape[1]] * 2
    if not parts:
        nothing = np.zeros(0, dtype=np.int64)
        return [_Choice(nothing, nothing, nothing, nothing, nothing)] * len(probabilities)
    # One tensor, so that the host waits once. Float64 holds the indices in it exactly.
    host = torch.cat([part.double() for part in parts], 1).cpu().numpy()
    scores, classes, pair_scores, pairs = np.split(host, np.cumsum(lengths)[:-1], axis=1)
    things = np.array(_thing_table(wanted.thing_ids, num_classes), dtype=bool)
    choices = []
    for image in range(len(host)):
        is_kept = (classes[image] != num_classes) & (scores[image] > wanted.object_mask_threshold)
        best = pairs[image].astype(np.int64)
        is_thing = things[best % num_classes]
        choices.append(
            _Choice(
                kept=np.flatnonzero(is_kept),
                classes=classes[image][is_kept].astype(np.int64),
                scores=scores[image][is_kept],
                pairs=best[is_thing],
                pair_scores=pair_scores[image][is_thing],
            )
        )
    return choices


class _Image:
    """The outputs of one image.

    Attributes:
        panoptic, semantic, instances: the pixels of an output. None if the output is not wanted;
            `panoptic` also if no query is kept.
    """

    def __init__(
        self, probabilities: Tensor, masks: Tensor | Callable[[Tensor], Tensor], sizes: Sizes,
        choice: _Choice, wanted: MaskOutputs,
    ) -> None:  # fmt: skip
        """Args:
        probabilities: (Q, K + 1).
        masks: (Q, h, w) logits, or the function that computes (n, h, w) of some queries.
        sizes, choice, wanted: the image's values in `mask_inference`.
        """
        self.choice, self.output_size = choice, sizes["output_size"]
        self.num_classes, self.device = probabilities.shape[1] - 1, probabilities.device
        self.panoptic: PanopticPixels | None = None
        self.semantic: SemanticPixels | None = None
        self.instances: InstancePixels | None = None
        semantic_size = self.output_size if wanted.resize_first else sizes["image_size"]
        if wanted.panoptic and len(choice.kept):
            scores = to_device(choice.scores.astype(np.float32), self.device)
            self.panoptic = PanopticPixels(choice.kept, scores, self.output_size)
        if wanted.instances:
            queries = np.unique(choice.pairs // self.num_classes)
            self.instances = InstancePixels(queries, self.output_size, self.device)
        if wanted.semantic:
            self.semantic = SemanticPixels(probabilities[:, :-1], semantic_size)
        # Outputs of the same size share one resizing of the masks.
        by_size: dict[Size, list[Pixels]] = {}
        all_outputs: list[Pixels | None] = [self.panoptic, self.instances, self.semantic]
        for pixels in all_outputs:
            if pixels is not None:
                size = semantic_size if pixels is self.semantic else self.output_size
                by_size.setdefault(size, []).append(pixels)
        needed = None
        if by_size and not isinstance(masks, Tensor):
            needed = union([pixels.queries for outputs in by_size.values() for pixels in outputs])
            masks = masks(to_device(needed, self.device))
        for size, outputs in by_size.items():
            collect(
                masks,
                outputs,
                queries=needed,
                image_size=sizes["image_size"],
                padded_size=sizes["padded_size"],
                output_size=size,
            )

    def semantic_scores(self) -> Tensor:
        """(K, H, W) float32."""
        assert self.semantic is not None
        scores = self.semantic.scores
        if scores.shape[1:] == tuple(self.output_size):
            return scores
        size = tuple(self.output_size)
        return F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]

    def segments(
        self, counts: np.ndarray, things: list[bool], overlap_threshold: float
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """The panoptic map; see `panoptic_inference`.

        Args:
            counts: (3 n,), from `PanopticPixels.counts`.
            things: for each class whether it is a thing.
        """
        if self.panoptic is None:
            return torch.zeros(self.output_size, dtype=torch.int32, device=self.device), []
        count = len(self.choice.kept)
        won, mask_areas = counts[: 2 * count].reshape(-1, 2).astype(int), counts[2 * count :]
        queries = [
            KeptQuery(score, category, int(won[i].sum()), int(mask_areas[i]), int(won[i, 1]))
            for i, (score, category) in enumerate(
                zip(self.choice.scores.tolist(), self.choice.classes.tolist(), strict=True)
            )
        ]
        table, segments = segments_of_queries(queries, things, overlap_threshold)
        by_code = to_device(np.array(table, dtype=np.int32), self.device)
        codes = self.panoptic.codes
        return by_code.index_select(0, codes.view(-1)).view(codes.shape), segments

    def detected_instances(self) -> Instances:
        """See `instance_inference`."""
        pixels, choice = self.instances, self.choice
        assert pixels is not None
        queries, categories = np.divmod(choice.pairs, self.num_classes)
        mask_rows = np.searchsorted(pixels.queries, queries)
        rows, classes = to_device(np.stack((mask_rows, categories)), self.device)
        scores = to_device(choice.pair_scores.astype(np.float32), self.device)
        result = Instances(self.output_size)
        result.pred_masks = pixels.masks[rows]
        result.pred_boxes = Boxes(pixels.boxes()[rows])
        result.scores = scores * pixels.mean_inside()[rows]
        result.pred_classes = classes
        return result


def _counts_on_host(images: Sequence[PanopticPixels | None]) -> list[np.ndarray]:
    """Copy the counts of all images at once; an image without kept queries has none."""
    counts = [pixels.counts() for pixels in images if pixels is not None]
    lengths = [0 if pixels is None else 3 * len(pixels.queries) for pixels in images]
    host = torch.cat(counts).cpu().numpy() if counts else np.zeros(0)
    return np.split(host, np.cumsum(lengths)[:-1])


def _thing_table(thing_ids: Collection[int] | Tensor | None, num_classes: int) -> list[bool]:
    """For each class whether it is a thing."""
    if thing_ids is None:
        return [True] * num_classes
    if isinstance(thing_ids, Tensor) and thing_ids.dtype == torch.bool:
        return thing_ids.tolist()
    things = {int(thing) for thing in thing_ids}
    return [label in things for label in range(num_classes)]
