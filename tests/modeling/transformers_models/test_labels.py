"""Labels of networks and classes of data sets are matched by their names."""

from __future__ import annotations

import pytest
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from hypothesis import given
from hypothesis import strategies as st

from panoptic_ext.modeling.transformers_models.labels import is_unused, match_labels

COCO = [str(c["name"]) for c in COCO_CATEGORIES]


def found(labels, classes):
    return list(match_labels(labels, classes).label_of_class)


def test_detrs_250_labels_are_cocos_133_classes():
    labels = [f"LABEL_{i}" for i in range(250)]
    labels[0] = labels[12] = "N/A"
    for category in COCO_CATEGORIES:
        labels[category["id"]] = category["name"]
    match = match_labels(labels, COCO)
    assert list(match.label_of_class) == [c["id"] for c in COCO_CATEGORIES]
    assert match.report() == "" and len(match.unmatched) == 250 - 133


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("Tree", "tree-merged"),
        ("wall", "wall-other-merged"),
        ("traffic_light", "Traffic light"),
        ("door", "door-stuff"),
        ("road, route", "road"),
        ("bed ", "bed"),
    ],
)
def test_spellings_of_one_name(label, name):
    assert found(["x", label], [name]) == [1] == found(["x", name], [label])


def test_names_that_only_an_ending_tells_apart_are_never_joined():
    walls = ["wall-brick", "wall-stone", "wall-other-merged"]
    assert found(walls, walls) == [0, 1, 2]
    assert found(["wall"], ["wall-other", "wall-stuff"]) == [-1, -1]
    assert found(["door-stuff", "door"], ["door", "door-stuff"]) == [1, 0]


def test_differences_are_listed_without_unused_labels():
    match = match_labels(["sky", "N/A", "LABEL_3", "sea", "background"], ["sky", "tree"])
    assert match.missing == ["tree"] and match.surplus == ["sea"]
    assert match.report() == "1 classes have no label: 'tree'; 1 labels are no class: 'sea'"


@pytest.mark.parametrize("label", ["N/A", "n/a", "LABEL_7", "unused1", "", " ", "background"])
def test_labels_that_mean_nothing(label):
    assert is_unused(label) and found([label, "x"], ["y"]) == [-1]
    assert not is_unused("sky") and not is_unused("unlabelled sky")


NAMES = st.lists(st.sampled_from([*COCO, "Sky", "Tree", "a,b", "b", "N/A", "LABEL_1"]), max_size=30)


@given(NAMES, NAMES)
def test_a_label_is_one_class_and_equal_names_match(labels, classes):
    match = found(labels, classes)
    used = [i for i in match if i >= 0]
    assert len(match) == len(classes) and len(set(used)) == len(used)
    for name in set(labels) & set(classes):
        if labels.count(name) == classes.count(name) == 1:
            assert labels[match[classes.index(name)]] == name


@given(st.permutations(COCO))
def test_the_order_of_labels_does_not_matter(labels):
    assert [labels[i] for i in found(labels, COCO)] == COCO
