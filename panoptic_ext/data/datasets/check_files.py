"""Check each image of a data set. An image that cannot be checked is a problem, too."""

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
        problems: those that were there so far.
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
    """`before`, and the problems of each item.

    Args:
        items: the images, or what is known of them.
        check: opens the files of one.
        where: names one in a problem.
        before: problems that are there already.
        workers: threads that check.
        progress: show a progress bar.

    Raises:
        CheckInterrupted: after Ctrl-C or SIGTERM.
    """
    files = ManyFiles[Item](where, num_threads=max(workers, 1))
    problems = list(before)
    bar = tqdm(files.results(items, check), total=len(items), unit="image", disable=not progress)
    for item, result in bar:
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
