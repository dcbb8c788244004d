"""From class and mask logits of queries to panoptic, semantic and instance segmentation.

Shapes: B images, Q queries, K classes (class K is "no object"), n kept queries, h x w mask logits,
H x W output. Sizes are (height, width) in pixels: `padded_size` is the input that the masks cover,
`image_size` its part without padding, `output_size` that of the result. Every function resizes as
`tiled_resize` says and never holds Q x H x W values. A mask logit that is no number counts as
outside the mask, an infinite one as the largest of float16. Source: Cheng et al., "Masked-attention
Mask Transformer", and the published model's steps.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from torch import Tensor

from panoptic_ext.host_copies import to_device
from panoptic_ext.postprocessing.mask_outputs import (
    InstancePixels,
    PanopticPixels,
    Pixels,
    SemanticPixels,
    collect,
)
from panoptic_ext.postprocessing.tiled_resize import Size

__all__ = [
    "MaskOutputs",
    "Sizes",
    "instance_inference",
    "mask_inference",
    "panoptic_inference",
    "semantic_inference",
]


class Sizes(TypedDict):
    """Of one image; see the module."""

    image_size: Size
    padded_size: Size
    output_size: Size


@dataclass(frozen=True, kw_only=True)
class MaskOutputs:
    """What `mask_inference` shall give, and how.

    Attributes:
        panoptic, semantic, instances: the outputs.
        thing_ids: classes that are things, or a bool table (K,); None: all.
        object_mask_threshold, overlap_threshold: see `panoptic_inference`.
        resize_first: see `semantic_inference`.
        top_k: see `instance_inference`.
    """

    panoptic: bool = False
    semantic: bool = False
    instances: bool = False
    thing_ids: Collection[int] | Tensor | None = None
    object_mask_threshold: float = 0.8
    overlap_threshold: float = 0.8
    resize_first: bool = True
    top_k: int = 100


@torch.no_grad()
def mask_inference(
    mask_cls: Tensor, mask_pred: Tensor, sizes: Sequence[Sizes], wanted: MaskOutputs
) -> list[dict[str, Any]]:
    """All outputs of a batch; on a GPU masks are resized once, and the host waits twice.

    Args:
        mask_cls: (B, Q, K + 1) logits.
        mask_pred: (B, Q, h, w) logits.
        sizes: of each image.
        wanted: the outputs.

    Returns:
        For each image a dict of "sem_seg", "panoptic_seg" and "instances", as far as wanted; see
        `semantic_inference`, `panoptic_inference` and `instance_inference`.
    """
    with torch.autocast(mask_pred.device.type, enabled=False):
        probabilities = mask_cls.float().softmax(-1)
        choices = _choose(probabilities, wanted)
        images = [
            _Image(probabilities[i], mask_pred[i], sizes[i], choice, wanted)
            for i, choice in enumerate(choices)
        ]
        things = None
        if wanted.panoptic:
            things = _thing_table(wanted.thing_ids, mask_cls.shape[-1] - 1)
        counts = _on_host([image.panoptic for image in images])
        results: list[dict[str, Any]] = []
        for image, of_image in zip(images, counts, strict=True):
            results.append({})
            if image.semantic is not None:
                results[-1]["sem_seg"] = image.semantic_scores()
            if things is not None:
                results[-1]["panoptic_seg"] = image.segments(
                    of_image, things, wanted.overlap_threshold
                )
            if image.instances is not None:
                results[-1]["instances"] = image.found_instances()
    return results


def panoptic_inference(
    mask_cls: Tensor,
    mask_pred: Tensor,
    *,
    image_size: Size,
    padded_size: Size,
    output_size: Size,
    thing_ids: Collection[int] | Tensor,
    object_mask_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Gives each pixel to the kept query of largest class score x sigmoid(mask logit).

    Args:
        mask_cls: (Q, K + 1) logits.
        mask_pred: (Q, h, w) logits.
        thing_ids: classes that are things, or a bool table (K,).
        object_mask_threshold: queries whose class score is not above it are ignored.
        overlap_threshold: a query that wins less than this share of its own mask is dropped.

    Returns:
        (H, W) int32 map of segment ids, 0 for void, and for each segment a dict of `id` (from 1),
        `isthing`, `category_id`, `score` (class probability; of stuff in several queries the
        largest) and `area` (pixels).
    """
    wanted = MaskOutputs(
        panoptic=True,
        thing_ids=thing_ids,
        object_mask_threshold=object_mask_threshold,
        overlap_threshold=overlap_threshold,
    )
    sizes = Sizes(image_size=image_size, padded_size=padded_size, output_size=output_size)
    return mask_inference(mask_cls[None], mask_pred[None], [sizes], wanted)[0]["panoptic_seg"]


def semantic_inference(
    mask_cls: Tensor,
    mask_pred: Tensor,
    *,
    image_size: Size,
    padded_size: Size,
    output_size: Size,
    resize_first: bool = True,
) -> Tensor:
    """Scores of the classes: sum over queries of p(class) x sigmoid(mask logit).

    Args:
        mask_cls: (Q, K + 1) logits.
        mask_pred: (Q, h, w) logits.
        resize_first: resize masks to the output, then score; otherwise score at the input's size,
            then resize the scores.

    Returns:
        (K, H, W) float32; on a CPU in channels_last layout.
    """
    wanted = MaskOutputs(semantic=True, resize_first=resize_first)
    sizes = Sizes(image_size=image_size, padded_size=padded_size, output_size=output_size)
    return mask_inference(mask_cls[None], mask_pred[None], [sizes], wanted)[0]["sem_seg"]


def instance_inference(
    mask_cls: Tensor,
    mask_pred: Tensor,
    *,
    image_size: Size,
    padded_size: Size,
    output_size: Size,
    top_k: int,
    thing_ids: Collection[int] | Tensor | None = None,
) -> Instances:
    """The best pairs of query and class as instances.

    Args:
        mask_cls: (Q, K + 1) logits.
        mask_pred: (Q, h, w) logits.
        top_k: pairs looked at, best class score first.
        thing_ids: if given, pairs of other classes are then left out.

    Returns:
        Instances of the output size, best class score first: `pred_masks` (N, H, W) bool (logit
        above 0), `pred_boxes` around them (zeros for an empty mask), `scores` (class score x mean
        mask probability inside the mask), `pred_classes`.
    """
    wanted = MaskOutputs(instances=True, thing_ids=thing_ids, top_k=top_k)
    sizes = Sizes(image_size=image_size, padded_size=padded_size, output_size=output_size)
    return mask_inference(mask_cls[None], mask_pred[None], [sizes], wanted)[0]["instances"]


@dataclass(frozen=True)
class _Choice:
    """Queries of an image that are looked at.

    Attributes:
        kept: (n,) int64, queries that may become segments, rising.
        classes, scores: (n,) of them.
        pairs: (N,) int64, pairs of query and class that become instances: query * K + class.
    """

    kept: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    pairs: np.ndarray
    pair_scores: np.ndarray


def _choose(probabilities: Tensor, wanted: MaskOutputs) -> list[_Choice]:
    """For each image; one copy to the host, none where only class scores are wanted.

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
    host = torch.cat([part.double() for part in parts], 1).cpu().numpy()
    scores, classes, pair_scores, pairs = np.split(host, np.cumsum(lengths)[:-1], axis=1)
    things = np.array(_thing_table(wanted.thing_ids, num_classes), dtype=bool)
    choices = []
    for image in range(len(host)):
        kept = (classes[image] != num_classes) & (scores[image] > wanted.object_mask_threshold)
        kept = np.flatnonzero(kept)
        best = pairs[image].astype(np.int64)
        left = things[best % num_classes]
        own = classes[image][kept].astype(np.int64), scores[image][kept]
        choices.append(_Choice(kept, *own, best[left], pair_scores[image][left]))
    return choices


class _Image:
    """The outputs of one image.

    Attributes:
        panoptic, semantic, instances: pixels of an output; None where it is not wanted, and
            `panoptic` also where no query is kept.
    """

    def __init__(
        self, probabilities: Tensor, masks: Tensor, sizes: Sizes, choice: _Choice,
        wanted: MaskOutputs,
    ) -> None:  # fmt: skip
        """Args: (Q, K + 1), (Q, h, w) logits, and what else `mask_inference` has of an image."""
        self.choice, self.output_size = choice, sizes["output_size"]
        self.num_classes, self.device = probabilities.shape[1] - 1, masks.device
        self.panoptic: PanopticPixels | None = None
        self.semantic: SemanticPixels | None = None
        self.instances: InstancePixels | None = None
        semantic_size = self.output_size if wanted.resize_first else sizes["image_size"]
        if wanted.panoptic and len(choice.kept):
            scores = to_device(choice.scores.astype(np.float32), masks.device)
            self.panoptic = PanopticPixels(choice.kept, scores, self.output_size)
        if wanted.instances:
            queries = np.unique(choice.pairs // self.num_classes)
            self.instances = InstancePixels(queries, self.output_size, masks.device)
        if wanted.semantic:
            self.semantic = SemanticPixels(probabilities[:, :-1], semantic_size)
        by_size: dict[Size, list[Pixels]] = {}
        every: list[Pixels | None] = [self.panoptic, self.instances, self.semantic]
        for pixels in every:
            if pixels is not None:
                size = semantic_size if pixels is self.semantic else self.output_size
                by_size.setdefault(size, []).append(pixels)
        for size, outputs in by_size.items():
            collect(
                masks,
                outputs,
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
        """The panoptic map, see `panoptic_inference`.

        Args:
            counts: (3 n,) as `PanopticPixels.counts`.
            things: of each class whether it is a thing.
        """
        if self.panoptic is None:
            return torch.zeros(self.output_size, dtype=torch.int32, device=self.device), []
        count = len(self.choice.kept)
        won, originals = counts[: 2 * count].reshape(-1, 2).astype(int), counts[2 * count :]
        queries = [
            _Kept(score, category, int(won[i].sum()), int(originals[i]), int(won[i, 1]))
            for i, (score, category) in enumerate(
                zip(self.choice.scores.tolist(), self.choice.classes.tolist(), strict=True)
            )
        ]
        table, segments = _accept(queries, things, overlap_threshold)
        by_code = to_device(np.array(table, dtype=np.int32), self.device)
        codes = self.panoptic.codes
        return by_code.index_select(0, codes.view(-1)).view(codes.shape), segments

    def found_instances(self) -> Instances:
        """See `instance_inference`."""
        pixels, choice = self.instances, self.choice
        assert pixels is not None
        where = np.searchsorted(pixels.queries, choice.pairs // self.num_classes)
        rows, classes = to_device(np.stack((where, choice.pairs % self.num_classes)), self.device)
        scores = to_device(choice.pair_scores.astype(np.float32), self.device)
        result = Instances(self.output_size)
        result.pred_masks = pixels.masks[rows]
        result.pred_boxes = Boxes(pixels.boxes()[rows])
        result.scores = scores * pixels.mean_inside()[rows]
        result.pred_classes = classes
        return result


def _on_host(every: Sequence[PanopticPixels | None]) -> list[np.ndarray]:
    """Counts of all images, by one copy; none of an image without kept queries."""
    counts = [pixels.counts() for pixels in every if pixels is not None]
    sizes = [0 if pixels is None else 3 * len(pixels.queries) for pixels in every]
    host = torch.cat(counts).cpu().numpy() if counts else np.zeros(0)
    return np.split(host, np.cumsum(sizes)[:-1])


@dataclass(frozen=True)
class _Kept:
    """A kept query: class score and class, pixels won, pixels of its own mask, pixels of both."""

    score: float
    category: int
    area: int
    original: int
    final: int


def _thing_table(thing_ids: Collection[int] | Tensor | None, num_classes: int) -> list[bool]:
    if thing_ids is None:
        return [True] * num_classes
    if isinstance(thing_ids, Tensor) and thing_ids.dtype == torch.bool:
        return thing_ids.tolist()
    things = {int(thing) for thing in thing_ids}
    return [label in things for label in range(num_classes)]


def _accept(
    queries: list[_Kept], is_thing: list[bool], overlap_threshold: float
) -> tuple[list[int], list[dict[str, Any]]]:
    """Which queries become segments, in query order.

    Returns:
        Segment id for each code of `_winners`, and segments_info.
    """
    table = [0] * (2 * len(queries))
    segments: list[dict[str, Any]] = []
    stuff: dict[int, dict[str, Any]] = {}
    for number, query in enumerate(queries):
        if not (query.area and query.original and query.final):
            continue
        if query.area / query.original < overlap_threshold:
            continue
        segment = stuff.get(query.category)
        if segment is None:
            segment = {
                "id": len(segments) + 1,
                "isthing": is_thing[query.category],
                "category_id": query.category,
                "score": query.score,
                "area": 0,
            }
            segments.append(segment)
            if not segment["isthing"]:
                stuff[query.category] = segment
        segment["score"] = max(segment["score"], query.score)
        segment["area"] += query.final
        table[2 * number + 1] = segment["id"]
    return table, segments
