"""Compute the losses of a batch in parts, whose gradients add up to those of the batch.

Let a loss be a sum S over things of the batch, divided by their number N. Part p has the loss
S_p / N_p. The batch's loss is the sum over parts of N_p / N times that. What N is depends on the
loss: images, masks, labelled pixels, sampled regions.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from torch import Tensor, nn

from panoptic_ext.engine.divergence import divergence_of
from panoptic_ext.modeling.layers.batch_part import BatchPart, part_of_batch
from panoptic_ext.modeling.roi_heads.batch_samples import BatchSamples, draws_samples
from panoptic_ext.modeling.semantic_head.efficientps import EfficientPSSemSegHead

__all__ = ["Accumulation", "BatchParts", "slices_of"]

logger = logging.getLogger(__name__)

_SEMANTIC = "loss_sem_seg"
# Losses that are means over images, with the same number of anchors of each.
_OF_IMAGES = ("loss_rpn_cls", "loss_rpn_loc")


def slices_of(number: int, parts: int) -> list[slice]:
    """Slices of `number` images, whose sizes differ by one at most; none is empty."""
    parts = max(1, min(parts, number))
    edges = [-(-number * part // parts) for part in range(parts + 1)]
    return list(itertools.starmap(slice, itertools.pairwise(edges)))


@dataclass
class BatchParts:
    """A batch in parts.

    Attributes:
        inputs: of the model, for each part.
        contexts: what `current_part` is while the model computes a part.
        model: not wrapped.
        samples: regions that a detector learns from; None: it draws them for each part.
    """

    inputs: list[list[dict[str, Any]]]
    contexts: list[BatchPart]
    model: nn.Module
    samples: BatchSamples | None = None
    approximate: set[str] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.inputs)

    @contextmanager
    def part(self, number: int) -> Iterator[None]:
        """The block in which the model computes the losses of a part."""
        if len(self) == 1:
            yield
            return
        with ExitStack() as stack:
            stack.enter_context(part_of_batch(self.contexts[number]))
            if self.samples is not None:
                stack.enter_context(self.samples.used(number))
            yield

    def weighted(self, losses: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        """Losses of a part, so that those of all parts add up to the losses of the batch."""
        if len(self) == 1 or getattr(self.model, "adds_up_over_parts", False):
            return losses
        weights = {name: self._share(name, number) for name in losses}
        # A mean over nothing is NaN. It has no share in the batch's loss, and no gradient.
        return {
            name: loss * weights[name] if weights[name] else loss.nan_to_num() * 0
            for name, loss in losses.items()
        }

    def _share(self, loss: str, number: int) -> float:
        share = None
        if self.samples is not None:
            share = self.samples.share(loss, number)
        if share is None and loss.startswith(_SEMANTIC):
            share = self._share_of_pixels(loss, number)
        if share is None:
            share = len(self.inputs[number]) / sum(map(len, self.inputs))
            is_exact = loss in _OF_IMAGES or (loss.startswith(_SEMANTIC) and self._by_images)
            if not is_exact:
                self.approximate.add(loss)
        return share

    @property
    def _by_images(self) -> bool:
        return isinstance(getattr(self.model, "sem_seg_head", None), EfficientPSSemSegHead)

    def _share_of_pixels(self, loss: str, number: int) -> float | None:
        head = getattr(self.model, "sem_seg_head", None)
        if not isinstance(head, SemSegFPNHead):
            return None
        counts = self.contexts[number].once(
            "labelled pixels",
            lambda: [sum(_labelled(x, head.ignore_value) for x in part) for part in self.inputs],
        )
        return counts[number] / sum(counts) if sum(counts) else None


class Accumulation:
    """Splits the batches of a training, and says once what is not exact."""

    def __init__(self, model: nn.Module, steps: int = 1) -> None:
        """
        Args:
            model: not wrapped in DistributedDataParallel.
            steps: parts of each batch.
        """
        self._model = model
        self._steps = steps
        self._reported = False

    def split(self, batch: list[dict[str, Any]]) -> BatchParts:
        """The parts of a batch."""
        if self._steps == 1:
            return BatchParts([batch], [], self._model)
        slices = slices_of(len(batch), self._steps)
        kept: dict[str, Any] = {}
        inputs = [list(batch[images]) for images in slices]
        contexts = [BatchPart(batch, images, kept) for images in slices]
        return BatchParts(inputs, contexts, self._model)

    def draw_samples(self, parts: BatchParts) -> None:
        """Draw the regions from which a detector learns for all parts; does nothing for others."""
        if len(parts) == 1 or not draws_samples(self._model):
            return
        samples = BatchSamples(self._model)
        try:
            samples.draw(parts.inputs, lambda number: part_of_batch(parts.contexts[number]))
        except Exception as error:
            # Numbers that are not finite fail again with gradients, where all workers hear of it.
            if not divergence_of(error, self._model):
                raise
            return
        parts.samples = samples

    def report(self, parts: BatchParts) -> None:
        """Log, once, the losses that are not those of the whole batch."""
        if parts.approximate and not self._reported:
            self._reported = True
            logger.warning(
                "SOLVER.ACCUMULATION_STEPS: %s of %s are averaged over the parts of a batch by "
                "their images, as over the workers of a distributed training. They are those of "
                "the whole batch where they are means over images",
                ", ".join(sorted(parts.approximate)),
                type(self._model).__name__,
            )


def _labelled(inputs: dict[str, Any], ignore_value: int) -> int:
    return int((inputs["sem_seg"] != ignore_value).sum()) if "sem_seg" in inputs else 0
