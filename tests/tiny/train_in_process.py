"""The command train in the process of a test, which leaves the loggers as they were."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from detectron2.utils.logger import setup_logger

from panoptic_ext.commands import train as command

__all__ = ["train"]

_LOGGERS = ("fvcore", "detectron2", "panoptic_ext")


def train(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code.

    Detectron2's handlers and levels, which a run sets for its whole process, would otherwise reach
    the tests that follow: they would see messages twice, or those of lower levels.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    states = [(one.handlers[:], one.level, one.propagate) for one in loggers]
    setup_logger.cache_clear()  # else the handlers of an earlier run are not made again
    try:
        return command.main(list(argv))
    finally:
        for one, (handlers, level, propagate) in zip(loggers, states, strict=True):
            for handler in {*one.handlers} - {*handlers}:
                handler.close()
            one.handlers[:] = handlers
            one.setLevel(level)
            one.propagate = propagate
        setup_logger.cache_clear()
