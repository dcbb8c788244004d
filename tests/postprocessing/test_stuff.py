"""Stuff and semantic scores from a semantic map equal those of dense steps."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.postprocessing import panoptic_inference, panoptic_with_stuff, semantic_scores
from panoptic_ext.postprocessing.stuff import fill_with_stuff, stuff_as_queries
from tests.postprocessing.naive_mask_inference import resize


def setting(classes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(classes, 6, 8, generator=generator)
    sizes = {"image_size": (21, 30), "padded_size": (24, 32), "output_size": (35, 50)}
    return generator, logits, sizes


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(0, 200), st.integers(0, 99))
def test_every_free_pixel_goes_to_its_likeliest_class_if_this_is_stuff(classes, limit, seed):
    generator, logits, sizes = setting(classes, seed)
    things = set(torch.randperm(classes, generator=generator)[: classes // 2].tolist())
    panoptic = torch.randint(0, 2, sizes["output_size"], generator=generator, dtype=torch.int32)
    panoptic[:10] = 0
    given_ids, given_segments = panoptic.clone(), [{"id": 1, "isthing": True}]
    found, segments = fill_with_stuff(
        panoptic, given_segments, logits, **sizes, thing_ids=things, stuff_area_threshold=limit
    )
    assert torch.equal(panoptic, given_ids) and given_segments == [{"id": 1, "isthing": True}]
    scores = resize(logits, **sizes).softmax(0)
    probability, label = scores.max(0)
    expected, left = panoptic.clone(), []
    for category in range(classes):
        own = (label == category) & (panoptic == 0)
        if category in things or int(own.sum()) < max(1, limit):
            continue
        left.append((category, int(own.sum()), float(probability[own].mean())))
        expected[own] = 1 + len(left)
    assert torch.equal(found, expected)
    assert [s["id"] for s in segments] == list(range(1, 2 + len(left)))
    for segment, (category, area, score) in zip(segments[1:], left, strict=True):
        assert (segment["category_id"], segment["area"]) == (category, area)
        assert not segment["isthing"] and abs(segment["score"] - score) < 1e-5


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 7), st.integers(0, 99))
def test_semantic_scores_are_the_softmax_of_resized_logits(classes, seed):
    _, logits, sizes = setting(classes, seed)
    expected = resize(logits, **sizes).softmax(0)
    torch.testing.assert_close(semantic_scores(logits, **sizes), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(0, 99))
def test_stuff_masks_are_on_where_the_semantic_map_says_so(classes, seed):
    generator, logits, _ = setting(classes, seed)
    stuff = torch.randperm(classes, generator=generator)[: (classes + 1) // 2].tolist()
    mask_cls, masks = stuff_as_queries(logits, stuff)
    assert mask_cls.shape == (len(stuff), classes + 1)
    assert mask_cls.argmax(-1).tolist() == stuff
    assert mask_cls.softmax(-1).amax(-1).min() > 0.999
    for row, own in enumerate(stuff):
        assert torch.equal(masks[row] > 0, logits.argmax(0) == own)
        others = [i for i in range(classes) if i != own]
        if others:
            torch.testing.assert_close(masks[row], logits[own] - logits[others].amax(0))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(0, 8), st.integers(0, 99))
def test_things_compete_with_stuff_and_stuff_takes_the_rest(classes, queries, seed):
    generator, semantic, sizes = setting(classes, seed)
    things = set(range(classes // 2))
    mask_cls = 3 * torch.randn(queries, classes + 1, generator=generator)
    mask_cls[:, classes // 2 : classes] = -50.0  # queries are for things
    mask_pred = 4 * torch.randn(queries, 6, 8, generator=generator)
    options = {**sizes, "thing_ids": things, "object_mask_threshold": 0.3, "overlap_threshold": 0.4}
    found, segments = panoptic_with_stuff(
        mask_cls, mask_pred, semantic, **options, stuff_area_threshold=0
    )
    stuff_cls, stuff_pred = stuff_as_queries(
        semantic, [i for i in range(classes) if i not in things]
    )
    rivals, of_rivals = panoptic_inference(
        torch.cat((mask_cls, stuff_cls)), torch.cat((mask_pred, stuff_pred)), **options
    )
    label = resize(semantic, **sizes).argmax(0)
    by_id = {s["id"]: s for s in of_rivals}
    assert [s["id"] for s in segments] == list(range(1, len(segments) + 1))
    assert [s["area"] for s in segments] == [int((found == s["id"]).sum()) for s in segments]
    categories = torch.tensor([-1, *(s["category_id"] for s in segments)])[found.long()]
    of_thing = torch.tensor([-1, *(s["category_id"] if s["isthing"] else -1 for s in of_rivals)])
    expected = of_thing[rivals.long()]
    free = expected < 0
    expected[free] = torch.where(label[free] >= classes // 2, label[free], -1)
    assert torch.equal(categories, expected)
    kept = [s["score"] for s in segments if s["isthing"]]
    assert kept == [s["score"] for s in by_id.values() if s["isthing"]]
