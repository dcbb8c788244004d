"""Check each image of a data set in threads. An image that cannot be checked is a problem."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from tqdm import tqdm

from panoptic_ext.data.coco.problems import Problem
from panoptic_ext.interruption import Interrupted
from panoptic_ext.many_files import ManyFiles

__all__ = ["CheckInterrupted", "check_each"]

Item = TypeVar("Item")


class CheckInterrupted(Interrupted):
    """A signal ended a check early.

    Attributes:
        problems: the problems found before the signal.
    """

    def __init__(self, signum: int, message: str, problems: list[Problem]) -> None:
        super().__init__(signum, message)
        self.problems = problems


def check_each(
    items: Sequence[Item],
    check: Callable[[Item], list[Problem]],
    *,
    where: Callable[[Item], str],
    before: Sequence[Problem] = (),
    workers: int = 4,
    progress: bool = False,
) -> list[Problem]:
    """Check each item and return `before`, followed by the problems of each item.

    Args:
        items: one entry for each image, such as its record.
        check: function that opens the files of an item and returns its problems.
        where: function that returns the text by which a problem names the item.
        before: problems that were found earlier.
        workers: number of threads.
        progress: show a progress bar.

    Raises:
        CheckInterrupted: after Ctrl-C or SIGTERM.
    """
    files = ManyFiles[Item](where, num_threads=max(workers, 1))
    problems = list(before)
    bar = tqdm(files.results(items, check), total=len(items), unit="image", disable=not progress)
    for item, result in bar:
        # `ManyFiles` yields None for an item whose check raised, and stores the error.
        if result is None:
            name = where(item)
            result = [Problem("unchecked", name, files.failed[name], "open its files one by one")]
        problems += result
    if files.stop.signum is not None:
        message = (
            f"stopped after {len(items) - files.left} of {len(items)} images; the same command "
            "checks from the first image"
        )
        raise CheckInterrupted(files.stop.signum, message, problems)
    return problems
