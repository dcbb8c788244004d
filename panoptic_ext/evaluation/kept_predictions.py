"""Keep the predictions of the worst and best images during an evaluation."""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.utils import comm

from panoptic_ext.data.coco.label_png import decode_png

__all__ = ["KeptPrediction", "PredictionKeeper", "gather_worst_and_best", "worst_and_best"]


@dataclass(frozen=True)
class KeptPrediction:
    """One image's prediction, small enough to keep and to send.

    Attributes:
        image_id: of the image.
        file_name: path of the image.
        pq: in percent, as in `PanopticEvaluator.per_image`.
        order: position of the image in the data set.
        png: the label map as COCO's RGB PNG; 0 is void.
        segments_info: as the model gave it: contiguous category ids.
    """

    image_id: int | str
    file_name: str
    pq: float
    order: int
    png: bytes
    segments_info: list[dict[str, Any]]

    def ids(self) -> np.ndarray:
        """The (H, W) int32 label map."""
        return decode_png(self.png)


class PredictionKeeper:
    """Keeps the `number` worst and `number` best of the predictions offered, from any thread.

    Attributes:
        number: of each kind, at most.
    """

    def __init__(self, number: int):
        self.number = number
        # Two heaps whose first entry is the next to be discarded: the best of the worst ones, and
        # the worst of the best ones. The order in the data set decides between equals.
        self._worst: list[tuple[float, int, KeptPrediction]] = []
        self._best: list[tuple[float, int, KeptPrediction]] = []
        self._lock = threading.Lock()

    def offer(self, pq: float, order: int, make: Callable[[], KeptPrediction]) -> None:
        """Keep a prediction if it is among the worst or best so far.

        Args:
            pq: of the image, in percent; nan (nothing to evaluate) is never kept.
            order: position of the image in the data set.
            make: encodes the prediction; called only if it is kept.
        """
        if self.number == 0 or math.isnan(pq):
            return
        with self._lock:
            wanted = [
                (heap, key)
                for heap, key in ((self._worst, (-pq, -order)), (self._best, (pq, -order)))
                if len(heap) < self.number or key > heap[0][:2]
            ]
            if not wanted:
                return
            prediction = make()
            for heap, key in wanted:
                push = heapq.heappush if len(heap) < self.number else heapq.heapreplace
                push(heap, (*key, prediction))

    def kept(self) -> dict[int, KeptPrediction]:
        """All that are kept, by their position in the data set."""
        return {p.order: p for _, _, p in (*self._worst, *self._best)}


def gather_worst_and_best(
    keeper: PredictionKeeper,
) -> tuple[list[KeptPrediction], list[KeptPrediction]]:
    """The worst and best images of all workers; to be called by all of them.

    Returns:
        on the main process the worst, worst first, and the best, best first; empty on others.
    """
    if not keeper.number:
        return [], []
    mine = keeper.kept()
    # A prediction is a whole PNG. All workers therefore exchange the qualities first, and send the
    # predictions of the chosen images only.
    keys = comm.all_gather([(p.pq, order) for order, p in mine.items()])
    worst, best = worst_and_best(sorted(set(itertools.chain(*keys))), keeper.number)
    chosen = {order: mine[order] for order in (*worst, *best) if order in mine}
    gathered = {order: p for part in comm.gather(chosen) for order, p in part.items()}
    if not comm.is_main_process():
        return [], []
    return [gathered[order] for order in worst], [gathered[order] for order in best]


def worst_and_best(keys: list[tuple[float, int]], number: int) -> tuple[list[int], list[int]]:
    """Choose images.

    Args:
        keys: (pq, order) of each.
        number: how many of each kind, at most; no image is of both kinds.

    Returns:
        orders of the worst, worst first, and of the best, best first.
    """
    worst = [order for _, order in sorted(keys)[:number]]
    best = sorted((-pq, order) for pq, order in keys if order not in worst)
    return worst, [order for _, order in best[:number]]
