"""What a conversion did, image by image and class by class: counts, losses, failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tabulate import tabulate

from panoptic_ext.data.coco.categories import Category
from panoptic_ext.data.convert.resolve import Group, Resolved

__all__ = ["ClassCounts", "Report"]

_MOST_SHOWN = 3  # names in a line of the console; report.json has all


@dataclass
class ClassCounts:
    """Sums over the images for one class.

    Attributes:
        segments, crowds: of the result; crowds are among the segments.
        images: that have a segment of it.
        pixels: of its segments.
        hidden: pixels of its labels that something in front took.
        vanished: objects that left no segment.
    """

    segments: int = 0
    crowds: int = 0
    images: int = 0
    pixels: int = 0
    hidden: int = 0
    vanished: int = 0


@dataclass
class Report:
    """The account of one conversion.

    Attributes:
        source: name of the format and path.
        rule: how overlaps were resolved, in words.
        classes: of the result.
        counts: {name: ClassCounts}.
        images: in the result.
        pixels, void_pixels: of the result.
        without_labels: images of the result that have no segment.
        unannotated: images of the source that the result leaves out.
        vanished: {image: ["shape 3 (car): ..."]} of objects that left no segment.
        left_out, void: classes that the user left out or made void.
        failed: {image: reason} of the images that could not be converted.
        notes: what a source or a target has to say, such as what its format cannot hold.
    """

    source: str
    rule: str
    classes: Sequence[Category]
    counts: dict[str, ClassCounts] = field(default_factory=dict)
    images: int = 0
    pixels: int = 0
    void_pixels: int = 0
    without_labels: list[str] = field(default_factory=list)
    unannotated: list[str] = field(default_factory=list)
    vanished: dict[str, list[str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    void: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for category in self.classes:
            self.counts.setdefault(category.name, ClassCounts())

    def add(self, name: str, resolved: Resolved) -> None:
        """Count one image."""
        self.images += 1
        self.pixels += resolved.ids.size
        self.void_pixels += resolved.ids.size - int(np.count_nonzero(resolved.ids))
        if not resolved.groups:
            self.without_labels.append(name)
        for group in resolved.groups:
            counts = self.counts[group.category.name]
            counts.segments += 1
            counts.crowds += group.is_crowd
            counts.pixels += group.visible
            counts.hidden += max(0, group.area - group.visible)
        for class_name in {group.category.name for group in resolved.groups}:
            self.counts[class_name].images += 1
        for group in resolved.vanished:
            counts = self.counts[group.category.name]
            counts.vanished += 1
            counts.hidden += group.area - group.visible
            self.vanished.setdefault(name, []).append(_how_it_vanished(group))

    def as_dict(self) -> dict[str, Any]:
        """The content of report.json."""
        return {
            "source": self.source,
            "overlap": self.rule,
            "images": self.images,
            "pixels": self.pixels,
            "void_pixels": self.void_pixels,
            "classes": [
                {"name": c.name, "isthing": int(c.isthing), **vars(self.counts[c.name])}
                for c in self.classes
            ],
            "classes_left_out": self.left_out,
            "classes_made_void": self.void,
            "images_without_labels": self.without_labels,
            "images_not_annotated": self.unannotated,
            "vanished_objects": self.vanished,
            "failed": self.failed,
            "notes": self.notes,
        }

    def lines(self) -> list[str]:
        """What the command prints: a table and a line for each loss."""
        segments = sum(c.segments for c in self.counts.values())
        vanished = sum(c.vanished for c in self.counts.values())
        share = 100 * self.void_pixels / max(1, self.pixels)
        lines = [
            self.table(),
            f"{_count(self.images, 'image')}, {_count(segments, 'segment')}, {share:.1f}% of the "
            f"pixels void; overlaps: {self.rule}",
        ]
        hidden = sum(self.counts[c.name].hidden for c in self.classes if c.isthing)
        if hidden:
            lines.append(f"{hidden} pixels of things were hidden by objects in front of them")
        if vanished:
            lines.append(
                f"{_count(vanished, 'object')} left no segment: {_shown(self.vanished, join=True)}"
            )
        for names, what in (
            (self.without_labels, "have no label"),
            (self.unannotated, "are not annotated and were left out"),
        ):
            if names:
                lines.append(f"{_count(len(names), 'image')} {what}: {_shown(names)}")
        if self.left_out:
            lines.append(f"classes left out: {', '.join(self.left_out)}")
        if self.void:
            lines.append(f"classes made void: {', '.join(self.void)}")
        return [*lines, *self.notes]

    def table(self) -> str:
        """Class by class: what is in the result and what was hidden."""
        rows = [
            [
                c.name,
                "thing" if c.isthing else "stuff",
                counts.images,
                counts.segments,
                counts.crowds,
                counts.pixels,
                counts.hidden,
                counts.vanished,
            ]
            for c in self.classes
            for counts in (self.counts[c.name],)
        ]
        heads = ["class", "kind", "images", "segments", "crowds", "pixels", "hidden", "vanished"]
        return tabulate(rows, heads)


def _how_it_vanished(group: Group) -> str:
    if group.area == 0:
        reason = "covers no pixel"
    elif group.visible == 0:
        reason = f"all of its {group.area} pixels are hidden"
    else:
        reason = f"{group.visible} pixels, fewer than --min-area"
    return f"{group.where} ({group.category.name}): {reason}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _shown(names: Sequence[str] | Mapping[str, list[str]], *, join: bool = False) -> str:
    shown = list(names)[:_MOST_SHOWN]
    if join and isinstance(names, Mapping):
        shown = [f"{name}: {'; '.join(names[name][:1])}" for name in shown]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more (report.json)" if more else "")
