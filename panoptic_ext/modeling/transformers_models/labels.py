"""Match the labels of a network with the classes of a data set, by their names.

C labels of the network, K classes of the data set.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from panoptic_ext.errors import listed

__all__ = ["LabelMatch", "is_unused", "match_labels"]

_UNUSED = re.compile(r"(label_\d+|n/?a|none|unused\w*|background|void|unlabell?ed|)", re.IGNORECASE)
# COCO's merged classes and its stuff: "wall-other-merged", "door-stuff", "tree-merged".
_ENDINGS = re.compile(r"( (merged|other|stuff))+$")


@dataclass(frozen=True)
class LabelMatch:
    """Which label is which class.

    Attributes:
        labels: names of the C labels.
        classes: names of the K classes.
        label_of_class: for each class its label id, or -1.
    """

    labels: tuple[str, ...]
    classes: tuple[str, ...]
    label_of_class: tuple[int, ...]

    @property
    def missing(self) -> list[str]:
        """Classes without a label."""
        pairs = zip(self.classes, self.label_of_class, strict=True)
        return [name for name, label in pairs if label < 0]

    @property
    def unmatched(self) -> list[int]:
        """Ids of the labels that are no class."""
        used = set(self.label_of_class)
        return [i for i in range(len(self.labels)) if i not in used]

    @property
    def surplus(self) -> list[str]:
        """Names of labels that are no class, without those that mean nothing, such as "N/A"."""
        return [self.labels[i] for i in self.unmatched if not is_unused(self.labels[i])]

    def report(self) -> str:
        """The differences in one text; "" if there is none."""
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} classes have no label: {listed(self.missing, 8)}")
        if self.surplus:
            parts.append(f"{len(self.surplus)} labels are no class: {listed(self.surplus, 8)}")
        return "; ".join(parts)


def is_unused(label: str) -> bool:
    """Whether a label means nothing: "N/A" and "LABEL_212" stand for ids that DETR leaves out."""
    return _UNUSED.fullmatch(label.strip()) is not None


def match_labels(labels: Sequence[str], classes: Sequence[str]) -> LabelMatch:
    """Match names: as they are, then without case and signs, endings of COCO, and synonyms.

    A later stage matches only what is left by the stages before, and only names that are unique
    among the rest, so that "wall-brick" and "wall-wood" never become one "wall".
    """
    found: dict[int, int] = {}
    for stage in (str, _plain, _short, _first_synonym):
        taken = set(found.values())
        left_labels = [i for i, name in enumerate(labels) if i not in taken and name]
        left_classes = [k for k in range(len(classes)) if k not in found]
        by_name = _unique({i: labels[i] for i in left_labels}, stage)
        for name, k in _unique({k: classes[k] for k in left_classes}, stage).items():
            if name in by_name:
                found[k] = by_name[name]
    return LabelMatch(
        tuple(labels), tuple(classes), tuple(found.get(k, -1) for k in range(len(classes)))
    )


def _unique(names: dict[int, str], stage: Callable[[str], str]) -> dict[str, int]:
    """Name after a stage -> its index, for names that only one index has."""
    staged = {i: stage(name) for i, name in names.items()}
    counts = Counter(staged.values())
    return {name: i for i, name in staged.items() if counts[name] == 1}


def _plain(name: str) -> str:
    return " ".join(re.sub(r"[^\w,;]|_", " ", name.lower()).split())


def _short(name: str) -> str:
    return _ENDINGS.sub("", _plain(name))


def _first_synonym(name: str) -> str:
    """ADE20K's names are lists of synonyms: "door, double door"."""
    return _short(re.split("[,;]", name)[0])
