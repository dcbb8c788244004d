"""One segment for each pixel: rules of overlap, against a painter that paints pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.data.coco.categories import Category
from panoptic_ext.data.convert.classes import ClassTable
from panoptic_ext.data.convert.labels import LabelledObject, Labels, MapSegment, SegmentMap
from panoptic_ext.data.convert.masks import Bitmap
from panoptic_ext.data.convert.resolve import OVERLAPS, Resolved, ResolveRule, resolve
from panoptic_ext.errors import DatasetError

CAR, DOG, SKY = (
    Category(1, "car", True, (1, 1, 1)),
    Category(2, "dog", True, (2, 2, 2)),
    Category(3, "sky", False, (3, 3, 3)),
)
CLASSES = ClassTable((CAR, DOG, SKY), void=frozenset({"blur"}), left_out=frozenset({"note"}))
SIZE = (5, 6)


def thing(name: str, mask: object, *, group: object = None, crowd: bool = False) -> LabelledObject:
    return LabelledObject(name, Bitmap(np.array(mask, bool)), name, group, crowd)


def row(pattern: str) -> np.ndarray:
    """(1, W) bool of the characters that are no dots."""
    return np.array([[character != "." for character in pattern]])


def letters(resolved: Resolved) -> str:
    """The first row: c and d for cars and dogs, upper case for a second one, s for sky."""
    names: dict[int, str] = {0: "."}
    for group in resolved.groups:
        letter = group.category.name[0]
        names[group.id] = letter.upper() if letter in names.values() else letter
    return "".join(names[i] for i in resolved.ids[0].tolist())


def paint(rule: ResolveRule, *objects: LabelledObject, under: SegmentMap | None = None) -> str:
    width = (under.ids if under else objects[0].mask.window((1, 99)).mask).shape[1]
    return letters(resolve(Labels((1, width), objects, under), CLASSES, rule))


def test_rules_of_overlap() -> None:
    car, dog, sky = thing("car", row("xxxx..")), thing("dog", row("..xx..")), thing(
        "sky", row("xxxxx."))  # fmt: skip
    assert paint(ResolveRule("order"), car, dog, sky) == "ccdds."
    assert paint(ResolveRule("reverse"), car, dog, sky) == "ccccs."
    assert paint(ResolveRule("area"), dog, car, sky) == "ccdds."
    assert paint(ResolveRule("order", mixed=True), car, dog, sky) == "sssss."
    assert paint(ResolveRule("priority", priority=("sky", "car")), car, dog, sky) == "sssss."
    assert paint(ResolveRule("priority", priority=("car",)), dog, car, sky) == "ccccs."
    assert paint(ResolveRule("order", first_in_front=True), car, dog, sky) == "ccccs."
    assert paint(ResolveRule("reverse", first_in_front=True), car, dog, sky) == "ccdds."


def test_parts_of_a_group_and_all_stuff_of_a_class_are_one_segment() -> None:
    parts = [thing("car", row("x....."), group=7), thing("car", row("...x.."), group=7)]
    alone = thing("car", row(".x...."))
    skies = [thing("sky", row("....x.")), thing("sky", row(".....x"))]
    assert paint(ResolveRule(), *parts, alone, *skies) == "cC.css"


def test_what_was_lost_is_counted() -> None:
    big, small = thing("car", row("xxxx..")), thing("dog", row("xxx..."))
    gone = thing("car", row("x....."))
    resolved = resolve(Labels((1, 6), [big, gone, small]), CLASSES, ResolveRule(least_area=2))
    assert [(g.area, g.visible) for g in resolved.groups] == [(3, 3)]
    assert [(g.area, g.visible) for g in resolved.vanished] == [(4, 1), (1, 0)]
    assert letters(resolved) == "ddd..."


def test_pixels_without_label_become_a_class_but_void_ones_stay_void() -> None:
    objects = [
        thing("car", row("x.....")),
        thing("blur", row("..x...")),
        thing("note", row(".xx...")),
    ]
    assert paint(ResolveRule(uncovered="sky"), *objects) == "cs.sss"
    tiny = ResolveRule(uncovered="sky", least_area=3)
    assert paint(tiny, thing("car", row("x.....")), thing("sky", row("....xx"))) == "ssssss"
    assert paint(tiny, thing("car", row("xxxxxx"))) == "cccccc"


def test_crowds_are_behind_things_of_their_class_and_segments_of_their_own() -> None:
    crowds = [thing("car", row("xxxx.."), crowd=True), thing("car", row("....xx"), crowd=True)]
    resolved = resolve(
        Labels((1, 6), [thing("car", row(".x....")), *crowds]), CLASSES, ResolveRule()
    )
    areas = sorted((g.visible, g.is_crowd) for g in resolved.groups)
    assert areas == [(1, False), (2, True), (3, True)]


def map_of(pattern: str) -> SegmentMap:
    """A map of the classes c, d, s; digits are cars as instances, b blur."""
    names = {"c": "car", "d": "dog", "s": "sky", "b": "blur"}
    segments = {
        ord(c): MapSegment(names.get(c, "car"), c not in names) for c in pattern if c != "."
    }
    return SegmentMap(np.array([[ord(c) if c != "." else 0 for c in pattern]]), segments)


def test_a_map_is_behind_objects_and_its_ids_stay() -> None:
    resolved = resolve(
        Labels((1, 6), [thing("dog", row(".x...."))], map_of("111ss.")), CLASSES, ResolveRule()
    )
    assert letters(resolved) == "cdcss."
    assert {g.id for g in resolved.groups} == {ord("1"), ord("s"), 1}
    assert [g.area - g.visible for g in resolved.groups] == [1, 0, 0]


@pytest.mark.parametrize(
    ("regions", "expected"), [("crowd", "cc.cs."), ("void", "....s."), ("parts", "cc.Cs.")]
)
def test_regions_of_things(regions: str, expected: str) -> None:
    rule = ResolveRule(regions=regions)
    assert paint(rule, under=map_of("cc.csb")) == expected
    resolved = resolve(Labels((1, 6), under=map_of("cc.cs.")), CLASSES, rule)
    assert any(g.is_crowd for g in resolved.groups) == (regions == "crowd")


def test_an_id_without_meaning_is_an_error() -> None:
    under = SegmentMap(np.array([[5]]), {})
    with pytest.raises(DatasetError, match="has the id 5, which stands for no segment"):
        resolve(Labels((1, 1), under=under), CLASSES, ResolveRule())


def naive(objects: list[LabelledObject], rule: ResolveRule) -> list[list[tuple]]:
    """The key of the object that is in front, for every pixel; () for void."""
    masks = [one.mask.window(SIZE).mask for one in objects]

    def key(number: int) -> tuple:
        one = objects[number]
        if one.class_name == "sky":
            return ("sky",)
        return (
            (one.class_name, "object", number) if one.group is None else (one.class_name, one.group)
        )

    def area(number: int) -> int:
        same = [i for i in range(len(objects)) if key(i) == key(number)]
        return sum(int(masks[i].sum()) for i in same)

    def better(a: int, b: int) -> bool:
        """Whether object a is in front of b."""
        if not rule.mixed and rule.overlap != "priority":
            layers = [
                0 if objects[i].class_name == "sky" else 2 - objects[i].is_crowd for i in (a, b)
            ]
            if layers[0] != layers[1]:
                return layers[0] > layers[1]
        if rule.overlap == "area" and area(a) != area(b):
            return area(a) < area(b)
        if rule.overlap == "priority":
            ranks = [
                rule.priority.index(objects[i].class_name)
                if objects[i].class_name in rule.priority
                else 99
                for i in (a, b)
            ]
            if ranks[0] != ranks[1]:
                return ranks[0] < ranks[1]
            layers = [
                0 if objects[i].class_name == "sky" else 2 - objects[i].is_crowd for i in (a, b)
            ]
            if not rule.mixed and layers[0] != layers[1]:
                return layers[0] > layers[1]
        later = (a > b) != rule.first_in_front
        return later != (rule.overlap == "reverse")

    grid = []
    for y in range(SIZE[0]):
        line = []
        for x in range(SIZE[1]):
            front = None
            for number in range(len(objects)):
                if masks[number][y, x] and (front is None or better(number, front)):
                    front = number
            line.append(() if front is None else key(front))
        grid.append(line)
    return grid


OBJECTS = st.lists(
    st.builds(
        lambda name, pixels, group, crowd: LabelledObject(
            name, Bitmap(np.array(pixels).reshape(SIZE)), "one", group, crowd
        ),
        st.sampled_from(["car", "dog", "sky"]),
        st.lists(st.booleans(), min_size=SIZE[0] * SIZE[1], max_size=SIZE[0] * SIZE[1]),
        st.sampled_from([None, None, 1]),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=50)
@given(
    OBJECTS,
    st.sampled_from(sorted(OVERLAPS)),
    st.booleans(),
    st.booleans(),
    st.permutations(["car", "dog", "sky"]),
)
def test_against_a_naive_painter(
    objects: list[LabelledObject], overlap: str, first: bool, mixed: bool, priority: list[str]
) -> None:
    # A group is one object, so that its parts are crowds or none is.
    objects = [
        o if o.group is None else LabelledObject(o.class_name, o.mask, "", 1) for o in objects
    ]
    names = tuple(priority[:2]) if overlap == "priority" else ()
    rule = ResolveRule(overlap, first, names, mixed)
    resolved = resolve(Labels(SIZE, objects), CLASSES, rule)
    grid = naive(objects, rule)
    pairs = {
        (i, key)
        for ids, keys in zip(resolved.ids.tolist(), grid, strict=True)
        for i, key in zip(ids, keys, strict=True)
    }
    # The same partition: each id has one key, and each key one id; void is void.
    assert len({i for i, _ in pairs}) == len({key for _, key in pairs}) == len(pairs)
    assert (0, ()) in pairs or all(i and key for i, key in pairs)
    names_of = {group.id: group.category.name for group in resolved.groups}
    assert all(names_of[i] == key[0] for i, key in pairs if i)
    for group in resolved.groups:
        assert 0 < group.visible == int((resolved.ids == group.id).sum()) <= group.area
