"""From labels that may overlap to one segment for each pixel.

Shapes: H x W is the size of the labels, G the number of groups. A group becomes one segment: an
object with all of its parts, or all stuff of one class. In the canvas, (H, W), group g has g + 1,
nothing has 0, and what is void although it hides others has -1.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np

from panoptic_ext.data.coco.categories import Category
from panoptic_ext.data.coco.runs import MAX_ID, find_runs
from panoptic_ext.data.convert.classes import ClassTable
from panoptic_ext.data.convert.labels import LabelledObject, Labels, MapSegment, SegmentMap
from panoptic_ext.data.convert.masks import Window
from panoptic_ext.errors import DatasetError, listed, quoted

__all__ = ["OVERLAPS", "REGIONS", "Group", "ResolveRule", "Resolved", "resolve"]

OVERLAPS = {
    "order": "the object that its file draws last is in front",
    "reverse": "the other way round",
    "area": "the smaller object is in front",
    "priority": "the class that --priority names earlier is in front",
}
"""Which of two overlapping objects is in front."""

REGIONS = {
    "crowd": "one crowd segment of its class",
    "parts": "an object for each connected part",
    "void": "void",
}
"""What a region of a thing class becomes whose objects a label map does not separate."""

_VOID = -1


@dataclass(frozen=True)
class ResolveRule:
    """How labels become one segment for each pixel.

    Attributes:
        overlap: one of OVERLAPS.
        first_in_front: "order" means that the first object of a file is in front.
        priority: classes from front to back, for "priority"; others are behind them.
        mixed: stuff may be in front of things. Otherwise single things are in front of crowds, and
            crowds in front of stuff, whatever the rule says.
        uncovered: class of the pixels that nothing covers; None: void.
        least_area: smaller segments are left out, in pixels.
        regions: one of REGIONS.
    """

    overlap: str = "order"
    first_in_front: bool = False
    priority: tuple[str, ...] = ()
    mixed: bool = False
    uncovered: str | None = None
    least_area: int = 1
    regions: str = "crowd"


@dataclass(eq=False)
class Group:
    """What becomes one segment.

    Attributes:
        category: its class.
        is_crowd: whether it is a crowd.
        where: names it in messages.
        id: of its segment.
        area: pixels of its labels.
        visible: pixels of them that nothing hides.
        parts: number of labels that it consists of.
        is_rest: what objects leave of a region of their class in a label map. It may be nothing,
            so that nothing is lost where they hide it.
    """

    category: Category
    is_crowd: bool
    where: str
    id: int = 0
    area: int = 0
    visible: int = 0
    parts: int = 0
    is_rest: bool = False


@dataclass(frozen=True)
class Resolved:
    """The result for one image.

    Attributes:
        ids: (H, W) int32 segment ids; 0 is void.
        groups: those that became segments.
        vanished: those that did not: without area, hidden, or too small.
    """

    ids: np.ndarray
    groups: list[Group]
    vanished: list[Group] = field(default_factory=list)


def resolve(labels: Labels, classes: ClassTable, rule: ResolveRule) -> Resolved:
    """Give each pixel to at most one segment.

    A label map lies behind all objects. Objects are painted on it from back to front.

    Args:
        labels: of one image.
        classes: of the result.
        rule: see `ResolveRule`.

    Raises:
        DatasetError: a mask cannot be decoded, or a class or a map's id is unknown.
    """
    return _Painting(labels, classes, rule).resolved()


class _Painting:
    """The canvas of one image and its groups while they are painted."""

    def __init__(self, labels: Labels, classes: ClassTable, rule: ResolveRule) -> None:
        self._labels, self._classes, self._rule = labels, classes, rule
        self._by_name = classes.by_name
        self._groups: list[Group] = []
        self._keys: dict[Hashable, int] = {}
        self._canvas: np.ndarray = np.zeros(labels.size, np.int32)
        if labels.under is not None:
            self._paint_map(labels.under)
        self._under = self._canvas.copy() if labels.objects else self._canvas
        self._objects = [
            (position, one, self._group_of(position, one))
            for position, one in enumerate(labels.objects)
            if one.class_name not in classes.left_out
        ]

    def resolved(self) -> Resolved:
        """Paint everything."""
        for _, one, number in self._back_to_front():
            window = self._window(one)
            if number != _VOID and self._groups[number].parts == 1:
                self._groups[number].area = int(np.count_nonzero(window.mask))
            window.part_of(self._canvas)[window.mask] = _VOID if number == _VOID else number + 1
        self._measure_unions()
        return self._finished()

    def _back_to_front(self) -> list[tuple[int, LabelledObject, int]]:
        rule = self._rule
        forward = rule.first_in_front == (rule.overlap == "reverse")
        areas = self._areas() if rule.overlap == "area" else {}
        ranks = {name: i for i, name in enumerate(rule.priority)}

        def depth(entry: tuple[int, LabelledObject, int]) -> tuple:
            position, one, number = entry
            in_order = position if forward else -position
            layer = 0 if rule.mixed else self._layer(number, one)
            if rule.overlap == "priority":
                # A listed class is where its place in the list says, be it thing or stuff.
                return -ranks.get(one.class_name, len(ranks)), layer, in_order
            # What becomes void is in no group, and so each such object has its own area.
            return layer, -areas.get((number, position * (number == _VOID)), 0), in_order

        return sorted(self._objects, key=depth)

    def _layer(self, number: int, one: LabelledObject) -> int:
        if number == _VOID:
            return 1
        group = self._groups[number]
        return 0 if not group.category.isthing else 1 if group.is_crowd else 2

    def _areas(self) -> dict[tuple[int, int], int]:
        """Pixels of each group, those of its parts added up."""
        areas: dict[tuple[int, int], int] = {}
        for position, one, number in self._objects:
            key = number, position * (number == _VOID)
            areas[key] = areas.get(key, 0) + int(np.count_nonzero(self._window(one).mask))
        return areas

    def _window(self, one: LabelledObject) -> Window:
        try:
            return one.mask.window(self._labels.size)
        except DatasetError as error:
            raise DatasetError(f"{one.where} ({one.class_name}): {error}") from error

    def _category(self, name: str, where: str) -> Category:
        category = self._by_name.get(name)
        if category is None:
            raise DatasetError(
                f"{where} is of the class {quoted(name)}, which is not among "
                f"{listed(self._by_name, 40, show=str)}; the labels may have changed meanwhile"
            )
        return category

    def _group_of(self, position: int, one: LabelledObject) -> int:
        if one.class_name in self._classes.void:
            return _VOID
        category = self._category(one.class_name, one.where)
        if not category.isthing:
            return self._group(("stuff", category.id), category, False, category.name)
        own = ("object", position) if one.group is None else ("group", category.id, one.group)
        return self._group(own, category, one.is_crowd, one.where)

    def _group(self, key: Hashable, category: Category, is_crowd: bool, where: str) -> int:
        """The number of a group, which is made where there is none with this key."""
        number = self._keys.setdefault(key, len(self._groups))
        if number == len(self._groups):
            self._groups.append(Group(category, is_crowd, where))
        self._groups[number].parts += 1
        return number

    def _paint_map(self, under: SegmentMap) -> None:
        """Begin with a label map."""
        if under.ids.shape != self._labels.size:
            raise DatasetError(
                f"its label map is of {under.ids.shape[0]} x {under.ids.shape[1]} pixels (height x "
                f"width), its objects of {self._labels.size[0]} x {self._labels.size[1]}"
            )
        runs = find_runs(under.ids)
        distinct, inverse = runs.index
        numbers: np.ndarray = np.zeros(len(distinct), np.int32)
        splits: list[tuple[int, MapSegment]] = []
        for index, value in enumerate(distinct.tolist()):
            if value == 0:
                continue
            segment = under.segments.get(value)
            if segment is None:
                raise DatasetError(f"its label map has the id {value}, which stands for no segment")
            number = self._map_group(value, segment)
            numbers[index] = number
            if number > 0 and self._is_open(segment) and self._rule.regions == "parts":
                splits.append((number, segment))
        self._canvas = runs.expand(numbers[inverse.reshape(-1)])
        for number, segment in splits:
            self._split(number, segment)
        visible = np.bincount(self._canvas[self._canvas > 0], minlength=len(self._groups) + 1)
        for group, area in zip(self._groups, visible[1:].tolist(), strict=True):
            group.area = area

    def _is_open(self, segment: MapSegment) -> bool:
        """Whether it is a region of things that the map does not separate."""
        isthing = self._by_name[segment.class_name].isthing
        return isthing and not segment.is_instance and not segment.is_crowd

    def _map_group(self, value: int, segment: MapSegment) -> int:
        """What the canvas has where the map has this value."""
        name = segment.class_name
        if name in self._classes.left_out:
            return 0
        if name in self._classes.void:
            return _VOID
        category = self._category(name, f"id {value} of its label map")
        is_open = self._is_open(segment)
        if is_open and self._rule.regions == "void":
            return _VOID
        if category.isthing:
            is_crowd, where = segment.is_crowd or is_open, f"id {value} of the label map"
            number = self._group(("map", value), category, is_crowd, where)
        else:
            number = self._group(("stuff", category.id), category, False, name)
        group = self._groups[number]
        group.is_rest = is_open
        group.id = group.id or (value if 0 < value < MAX_ID else 0)
        return number + 1

    def _split(self, number: int, segment: MapSegment) -> None:
        """Make each connected part of a region a group."""
        mask = (self._canvas == number).astype(np.uint8)
        count, parts = cv2.connectedComponents(mask, connectivity=8)
        first = self._groups[number - 1]
        first.is_crowd = False
        for part in range(2, count):
            where = f"part {part} of {segment.class_name} in the label map"
            key = ("part", number, part)
            number_of_part = self._group(key, first.category, False, where)
            self._groups[number_of_part].is_rest = True
            self._canvas[parts == part] = number_of_part + 1

    def _measure_unions(self) -> None:
        """The areas of groups of several labels; they are decoded again, one at a time."""
        members: dict[int, list[LabelledObject]] = {}
        for _, one, number in self._objects:
            if number != _VOID and self._groups[number].parts > 1:
                members.setdefault(number, []).append(one)
        for number, objects in members.items():
            union = self._under == number + 1
            for one in objects:
                window = self._window(one)
                part = window.part_of(union)
                part |= window.mask
            self._groups[number].area = int(np.count_nonzero(union))

    def _finished(self) -> Resolved:
        counts = np.bincount(self._canvas[self._canvas > 0], minlength=len(self._groups) + 1)
        kept: list[Group] = []
        vanished: list[Group] = []
        for group, visible in zip(self._groups, counts[1:].tolist(), strict=True):
            group.visible = visible
            if group.is_rest:
                group.area = visible
            if visible >= max(1, self._rule.least_area):
                kept.append(group)
            elif visible or not group.is_rest:
                vanished.append(group)
        rest = self._uncovered(kept, vanished)
        _number(kept)
        segment_ids = {group: group.id for group in kept}
        table = np.array([0, *(segment_ids.get(group, 0) for group in self._groups)], np.int32)
        ids = table[np.maximum(self._canvas, 0)]
        if rest is not None:
            free = (ids == 0) & (self._canvas != _VOID)
            ids[free] = rest.id
            rest.visible = int(np.count_nonzero(ids == rest.id))
        return Resolved(ids, kept, vanished)

    def _uncovered(self, kept: list[Group], vanished: list[Group]) -> Group | None:
        """The group of the pixels that nothing covers, if they are not void."""
        if self._rule.uncovered is None:
            return None
        category = self._category(self._rule.uncovered, "--uncovered")
        number = self._keys.get(("stuff", category.id))
        group = Group(category, False, category.name) if number is None else self._groups[number]
        if group in kept:
            return group
        table = np.array([True, *(g not in kept for g in self._groups)])
        is_free = table[np.maximum(self._canvas, 0)] & (self._canvas != _VOID)
        if not is_free.any():
            return None
        if group in vanished:
            vanished.remove(group)
        kept.append(group)
        return group


def _number(groups: list[Group]) -> None:
    """Give an id to each group that has none: the smallest that are free."""
    taken = {group.id for group in groups}
    free = _free_ids(taken)
    for group in groups:
        if not group.id:
            group.id = next(free)


def _free_ids(taken: set[int]) -> Iterator[int]:
    return (number for number in range(1, MAX_ID) if number not in taken)
