"""Regions for the losses of a detector, drawn for a whole batch before its parts are trained.

RPN and RoI heads learn from random samples of anchors and proposals, and their losses are means
over the samples of all images of a batch. How many these are is known only once all images have
their proposals. So the parts of a batch pass the backbone and the RPN twice: first without
gradients, after which the samples of all images are drawn, in the order in which Detectron2 draws
them for a whole batch; then, with gradients, they are used.

Shapes: R regions, M of them foreground, of all images of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import ROIHeads
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

__all__ = ["BatchSamples", "draws_samples"]

_OF_REGIONS = ("loss_cls", "loss_box_reg")  # and those of the stages of a cascade
_OF_FOREGROUND = "loss_mask"


class _DrawnError(Exception):
    """Ends a forward pass once its proposals are known."""


def draws_samples(model: nn.Module) -> bool:
    """Whether a model has an RPN and RoI heads as Detectron2's GeneralizedRCNN."""
    rpn, heads = (getattr(model, name, None) for name in ("proposal_generator", "roi_heads"))
    return isinstance(rpn, RPN) and isinstance(heads, ROIHeads)


class BatchSamples:
    """The samples of a batch, by its parts.

    Attributes:
        regions: R of each part.
        foreground: M of each part.
    """

    def __init__(self, model: nn.Module) -> None:
        """Args:
        model: `draws_samples` of it; not wrapped in DistributedDataParallel; in training mode.
        """
        self._model = model
        self._rpn: Any = model.proposal_generator
        self._heads: Any = model.roi_heads
        self._anchors: list[tuple[list[Tensor], list[Tensor]]] = []
        self._proposals: list[list[Instances]] = []
        self._samples: list[list[Instances]] = []
        self.regions: list[int] = []
        self.foreground: list[int] = []

    @torch.no_grad()
    def draw(
        self,
        parts: Sequence[list[dict[str, Any]]],
        context: Callable[[int], AbstractContextManager[Any]],
    ) -> None:
        """Draw the samples of all parts.

        Args:
            parts: inputs of the model.
            context: the block in which the model is called with the part of a number.
        """
        truth: list[list[Instances]] = []

        def stop(proposals: list[Instances], instances: list[Instances]) -> None:
            self._proposals.append(proposals)
            truth.append(instances)
            raise _DrawnError

        def keep_anchors(*args: Any) -> tuple[list[Tensor], list[Tensor]]:
            drawn = type(self._rpn).label_and_sample_anchors(self._rpn, *args)
            self._anchors.append(drawn)
            return drawn

        with ExitStack() as stack:
            stack.enter_context(EventStorage(0))  # the second pass logs
            stack.enter_context(_unchanged_statistics(self._model))
            stack.enter_context(_replaced(self._heads, label_and_sample_proposals=stop))
            methods = {"label_and_sample_anchors": keep_anchors, "losses": lambda *_: {}}
            stack.enter_context(_replaced(self._rpn, **methods))
            semantic_head = getattr(self._model, "sem_seg_head", None)
            if semantic_head is not None:
                stack.enter_context(_replaced(semantic_head, forward=lambda *_: (None, {})))
            for number, part in enumerate(parts):
                with context(number):
                    try:
                        self._model(part)
                    except _DrawnError:
                        continue
        drawn = self._heads.label_and_sample_proposals(
            [image for part in self._proposals for image in part],
            [image for part in truth for image in part],
        )
        for part in parts:
            self._samples.append(drawn[: len(part)])
            drawn = drawn[len(part) :]
            labels = [image.gt_classes for image in self._samples[-1]]
            self.regions.append(sum(map(len, labels)))
            foreground = [(x >= 0) & (x < self._heads.num_classes) for x in labels]
            self.foreground.append(sum(int(x.sum()) for x in foreground))

    @contextmanager
    def used(self, number: int) -> Iterator[None]:
        """In the block the model takes the samples of a part instead of drawing some."""

        def proposals_of(*args: Any) -> list[Instances]:
            if self._rpn.training:
                return self._proposals[number]
            # A fusion that learns has detections made of the training images, too.
            return type(self._rpn).predict_proposals(self._rpn, *args)

        methods = {
            "label_and_sample_anchors": lambda *_: self._anchors[number],
            "predict_proposals": proposals_of,
        }
        samples = {"label_and_sample_proposals": lambda *_: self._samples[number]}
        with _replaced(self._rpn, **methods), _replaced(self._heads, **samples):
            yield

    def share(self, loss: str, number: int) -> float | None:
        """The part's share of what the batch's loss is divided by; None: as its images."""
        counts = None
        if loss.startswith(_OF_REGIONS):
            counts = self.regions
        elif loss.startswith(_OF_FOREGROUND):
            counts = self.foreground
        return counts[number] / sum(counts) if counts and sum(counts) else None


@contextmanager
def _replaced(module: nn.Module, **methods: Callable) -> Iterator[None]:
    """Methods of one module replaced in the block."""
    for name, method in methods.items():
        setattr(module, name, method)
    try:
        yield
    finally:
        for name in methods:
            delattr(module, name)


@contextmanager
def _unchanged_statistics(model: nn.Module) -> Iterator[None]:
    """Norms that normalise by the batch, as in training, and keep their running statistics."""
    norms = [m for m in model.modules() if getattr(m, "track_running_stats", False) and m.training]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
