"""The batch of which a model gets one part after another, where gradients are accumulated.

The losses of the parts add up to that of the batch if each is divided by what the loss of the whole
batch is divided by, such as its number of masks, and if all parts are padded to one size. A model
asks `current_part` for the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BatchPart", "current_part", "part_of_batch", "size_of_batch"]


@dataclass(frozen=True)
class BatchPart:
    """One part of a batch.

    Attributes:
        batch: inputs of the whole batch, a dict for each image.
        images: which of them are the part.
        kept: what `once` has computed; shared by the parts of a batch.
    """

    batch: Sequence[dict[str, Any]]
    images: slice
    kept: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """What `compute` gives for the whole batch, computed for its first part alone."""
        if name not in self.kept:
            self.kept[name] = compute()
        return self.kept[name]


_current: ContextVar[BatchPart | None] = ContextVar("part of a batch", default=None)


def current_part() -> BatchPart | None:
    """The part that the model is called with; None where it gets whole batches."""
    return _current.get()


@contextmanager
def part_of_batch(part: BatchPart) -> Iterator[None]:
    """Have `current_part` give `part` in the block."""
    token = _current.set(part)
    try:
        yield
    finally:
        _current.reset(token)


def size_of_batch() -> tuple[int, int]:
    """Largest height and width, in pixels, of the images of the current part's batch, or (0, 0)."""
    part = current_part()
    if part is None:
        return 0, 0
    sizes = [inputs["image"].shape[-2:] for inputs in part.batch]
    return max(int(size[0]) for size in sizes), max(int(size[1]) for size in sizes)
