"""Outputs of a network of transformers -> panoptic map, instances and semantic scores.

Shapes: B images, Q queries, C labels of the network, K classes, U labels that are no class.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from panoptic_ext.errors import ConfigError, check_known
from panoptic_ext.modeling.transformers_models.families import Family, QueryOutputs
from panoptic_ext.postprocessing import MaskOutputs, Sizes, mask_inference, with_extents
from panoptic_ext.postprocessing.product_segments import product_segments
from panoptic_ext.postprocessing.windows import WindowMean

__all__ = ["QuerySegmentation", "Thresholds", "thresholds_of"]

RULES = ("transformers", "published")


@dataclass(frozen=True)
class Thresholds:
    """Of panoptic segments, 0 to 1; see the keys of the same names in MODEL.TRANSFORMERS."""

    threshold: float
    mask_threshold: float
    overlap_mask_area_threshold: float


def thresholds_of(keys: Any, processor: Any) -> Thresholds:
    """The thresholds of a config, None filled in with the defaults of the image processor.

    Args:
        keys: MODEL.TRANSFORMERS.
        processor: its `post_process_panoptic_segmentation` has the defaults.
    """
    given = {
        "threshold": keys.THRESHOLD,
        "mask_threshold": keys.MASK_THRESHOLD,
        "overlap_mask_area_threshold": keys.OVERLAP_MASK_AREA_THRESHOLD,
    }
    defaults = inspect.signature(processor.post_process_panoptic_segmentation).parameters
    values = {
        name: float(defaults[name].default if value is None else value)
        for name, value in given.items()
    }
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"MODEL.TRANSFORMERS.{name.upper()} is {value}, expected 0 to 1")
    return Thresholds(**values)


class QuerySegmentation:
    """Converts the outputs of a network to those that Detectron2's users expect."""

    def __init__(
        self,
        family: Family,
        wanted: MaskOutputs,
        *,
        label_of_class: Sequence[int],
        num_labels: int,
        rule: str,
        thresholds: Thresholds,
    ) -> None:
        """
        Args:
            family: of the network.
            wanted: which outputs, their thing classes, and the number of instances; its thresholds
                are not read.
            label_of_class: for each class its label, or -1.
            num_labels: C.
            rule: one of RULES, see MODEL.TRANSFORMERS.POST_PROCESSING.
            thresholds: of panoptic segments.

        Raises:
            ConfigError: the rule is unknown, or has no such mask threshold.
        """
        check_known("MODEL.TRANSFORMERS.POST_PROCESSING", rule, RULES)
        self.is_published = rule == "published" or family.has_one_rule
        if self.is_published and thresholds.mask_threshold != 0.5:
            raise ConfigError(
                f"MODEL.TRANSFORMERS.MASK_THRESHOLD is {thresholds.mask_threshold}, but the rule "
                "of this model (EoMT's, and POST_PROCESSING published) has masks from 0.5 on; "
                "leave it out"
            )
        self.family, self.thresholds = family, thresholds
        self.num_classes = len(label_of_class)
        self.missing = [k for k, label in enumerate(label_of_class) if label < 0]
        things = frozenset(int(thing) for thing in wanted.thing_ids or ())
        self.things = things - frozenset(self.missing)
        self.wanted = replace(
            wanted,
            thing_ids=self.things,
            object_mask_threshold=thresholds.threshold,
            overlap_threshold=thresholds.overlap_mask_area_threshold,
            resize_first=self.is_published,
        )
        used = set(label_of_class)
        self.unmatched = [i for i in range(num_labels) if i not in used]
        # Columns of the class logits: the classes, the labels that are no class, "no object".
        self.columns = [*(max(0, i) for i in label_of_class), *self.unmatched, num_labels]

    def __call__(self, outputs: QueryOutputs, sizes: Sequence[Sizes]) -> list[dict[str, Any]]:
        """
        Args:
            outputs: of a batch of images of one size.
            sizes: of each image: of the network's input with and without padding, of the output.

        Returns:
            For each image a dict of those of "panoptic_seg", "instances" and "sem_seg" that are
            wanted, in contiguous ids; segments have `bbox`, too.
        """
        logits = self.by_class(outputs.class_logits)
        masks = outputs.mask_logits
        inner = [self._inner_sizes(size, masks) for size in sizes]
        by_queries = replace(
            self.wanted,
            panoptic=self.wanted.panoptic and self.is_published,
            semantic=self.wanted.semantic and not self.unmatched,
        )
        results = mask_inference(logits, masks, inner, by_queries)
        if self.wanted.semantic and self.unmatched:
            alone = replace(self.wanted, panoptic=False, instances=False)
            merged = self._without_unmatched(logits)
            for result, scores in zip(
                results, mask_inference(merged, masks, inner, alone), strict=True
            ):
                result.update(scores)
        for i, result in enumerate(results):
            if self.wanted.panoptic:
                segments = result.get("panoptic_seg")
                if segments is None:
                    segments = self._product_segments(logits[i], masks[i], sizes[i])
                result["panoptic_seg"] = with_extents(*self._of_classes(*segments))
        return results

    def of_windows(
        self,
        outputs: QueryOutputs,
        spans: Sequence[tuple[int, int]],
        image_size: tuple[int, int],
        output_size: tuple[int, int],
    ) -> Tensor:
        """Semantic scores of an image that the network saw in windows along its longer side.

        Where windows overlap, their scores are averaged; so does a semantic EoMT.

        Args:
            outputs: of the P windows, in the place of the batch.
            spans: for each window its first pixel and the one past its last.
            image_size: of the image that the windows were cut from.
            output_size: H, W.

        Returns:
            (K, H, W) float32.
        """
        side = min(image_size)
        sizes = Sizes(image_size=(side, side), padded_size=(side, side), output_size=(side, side))
        alone = replace(self.wanted, panoptic=False, instances=False, semantic=True)
        logits = self._without_unmatched(self.by_class(outputs.class_logits))
        windows = mask_inference(logits, outputs.mask_logits, [sizes] * len(spans), alone)
        mean = WindowMean(image_size)
        for (start, _), window in zip(spans, windows, strict=True):
            along_rows = image_size[0] > image_size[1]
            mean.add(window["sem_seg"], *((start, 0) if along_rows else (0, start)))
        return mean.mean(output_size)

    def by_class(self, class_logits: Tensor) -> Tensor:
        """(B, Q, C + 1) logits of labels -> (B, Q, K + U + 1): classes, other labels, no object.

        A class without a label is impossible, -inf.
        """
        logits = class_logits[..., self.columns]
        logits[..., self.missing] = -torch.inf
        return logits

    def _without_unmatched(self, logits: Tensor) -> Tensor:
        """(B, Q, K + 1): labels that are no class count as no object."""
        classes, others = logits.tensor_split([self.num_classes], dim=-1)
        return torch.cat((classes, others.logsumexp(-1, keepdim=True)), dim=-1)

    def _inner_sizes(self, sizes: Sizes, masks: Tensor) -> Sizes:
        """The sizes that masks are resized to on their way to the output, by the rule."""
        if self.is_published:
            return sizes
        # transformers resizes the mask logits to this size, or takes them as they are.
        size = self.family.mask_size or (masks.shape[-2], masks.shape[-1])
        return Sizes(image_size=size, padded_size=size, output_size=sizes["output_size"])

    def _product_segments(
        self, logits: Tensor, masks: Tensor, sizes: Sizes
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        return product_segments(
            logits,
            masks,
            thing_ids=self.things,
            threshold=self.thresholds.threshold,
            mask_threshold=self.thresholds.mask_threshold,
            overlap_threshold=self.thresholds.overlap_mask_area_threshold,
            output_size=sizes["output_size"],
            mask_size=self.family.mask_size,
        )

    def _of_classes(
        self, panoptic_seg: Tensor, segments: list[dict[str, Any]]
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """Make segments of labels that are no class void."""
        kept = [s for s in segments if s["category_id"] < self.num_classes]
        if len(kept) == len(segments):
            return panoptic_seg, segments
        table = torch.zeros(len(segments) + 1, dtype=torch.int32)
        for number, segment in enumerate(kept, 1):
            table[segment["id"]] = number
        renumbered = [{**segment, "id": number} for number, segment in enumerate(kept, 1)]
        return table.to(panoptic_seg.device)[panoptic_seg.long()], renumbered
