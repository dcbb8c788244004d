"""What a result shows, in one line of text."""

from __future__ import annotations

import re
from collections.abc import Mapping

from panoptic_ext.errors import listed

__all__ = ["describe", "plural"]

_MOST_CLASSES = 6  # of things, and of stuff
# Plurals that no ending tells, among the things of the data sets that this package knows.
_IRREGULAR = {
    "person": "people",
    "mouse": "mice",
    "knife": "knives",
    "shelf": "shelves",
    "nucleus": "nuclei",
}
_UNCHANGED = ("sheep", "broccoli", "bread", "scissors", "skis", "people")


def plural(name: str) -> str:
    """The plural of a class's English name, such as "cars", "people" or "wine glasses"."""
    start = re.sub(r"[^\W_]+\Z", "", name)
    last = name[len(start) :]
    if last in _IRREGULAR:
        return start + _IRREGULAR[last]
    if not last or last in _UNCHANGED:
        return name
    if re.search(r"(s|x|z|ch|sh)$", last):
        return name + "es"
    return name[:-1] + "ies" if re.search(r"[^aeiou]y$", last) else name + "s"


def describe(counts: Mapping[str, int], shares: Mapping[str, float]) -> str:
    """A text such as "3 cars, 1 person; road 34 %, sky 20 %".

    Args:
        counts: class of things -> how many.
        shares: class of stuff -> its share of the image's pixels, 0 to 1.
    """
    things = [f"{n} {plural(name) if n > 1 else name}" for name, n in counts.items()]
    stuff = [f"{name} {share * 100:.0f} %" for name, share in shares.items()]
    parts = [listed(part, _MOST_CLASSES, show=str) for part in (things, stuff) if part]
    return "; ".join(parts) or "nothing found"
