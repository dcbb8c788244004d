"""The panoptic rule of transformers, against its own function on random outputs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from panoptic_ext.postprocessing.product_segments import product_segments
from tests.tiny.transformers_predictor import transformers

CLASSES = 5
PROCESSOR = transformers.MaskFormerImageProcessor()


def random_outputs(seed, queries, size=(9, 12), sharpness=4.0):
    generator = torch.Generator().manual_seed(seed)
    classes = sharpness * torch.randn(queries, CLASSES + 1, generator=generator)
    coarse = 3 * torch.randn(1, queries, 3, 4, generator=generator)
    masks = torch.nn.functional.interpolate(coarse, size, mode="bilinear")[0]
    return classes, masks


def theirs(classes, masks, stuff, output_size, **thresholds):
    outputs = SimpleNamespace(class_queries_logits=classes[None], masks_queries_logits=masks[None])
    result = PROCESSOR.post_process_panoptic_segmentation(
        outputs, label_ids_to_fuse=set(stuff), target_sizes=[output_size], **thresholds
    )[0]
    return result["segmentation"], result["segments_info"]


def ours(classes, masks, stuff, output_size, **thresholds):
    return product_segments(
        classes,
        masks,
        thing_ids=[i for i in range(CLASSES) if i not in stuff],
        output_size=output_size,
        overlap_threshold=thresholds.pop("overlap_mask_area_threshold"),
        **thresholds,
    )


@settings(max_examples=60)
@example(5, 5, set(), 0.0, 0.5, 0.8, (9, 12))  # a query wins exactly 0.8 of its mask
@given(
    seed=st.integers(0, 10**6),
    queries=st.integers(1, 12),
    stuff=st.sets(st.integers(0, CLASSES - 1)),
    threshold=st.sampled_from([0.0, 0.3, 0.6]),
    mask_threshold=st.sampled_from([0.2, 0.5]),
    overlap=st.sampled_from([0.0, 0.3, 0.8]),
    size=st.sampled_from([(9, 12), (20, 17), (5, 31)]),
)
def test_segments_are_those_of_transformers(
    seed, queries, stuff, threshold, mask_threshold, overlap, size
):
    classes, masks = random_outputs(seed, queries)
    thresholds = {
        "threshold": threshold,
        "mask_threshold": mask_threshold,
        "overlap_mask_area_threshold": overlap,
    }
    their_map, listed = theirs(classes, masks, stuff, size, **thresholds)
    ids, segments = ours(classes, masks, stuff, size, **thresholds)
    # Theirs lists queries, in their order; a stuff segment has several.
    kinds = [s["label_id"] for s in listed]
    firsts = [i for i, k in enumerate(kinds) if k not in stuff or k not in kinds[:i]]
    assert [s["category_id"] for s in segments] == [kinds[i] for i in firsts]
    assert [s["id"] for s in segments] == list(range(1, len(segments) + 1))
    for segment in segments:
        same = [
            s["score"]
            for i, s in enumerate(listed)
            if (i in firsts and firsts.index(i) + 1 == segment["id"])
            or (s["was_fused"] and s["label_id"] == segment["category_id"])
        ]
        assert segment["score"] == pytest.approx(max(same), abs=1e-6)
        assert segment["isthing"] == (segment["category_id"] not in stuff)
        assert segment["area"] == int((ids == segment["id"]).sum())
    table = torch.tensor([-1 if not listed else 0, *(listed[i]["id"] for i in firsts)])
    if segments or listed or (their_map == 0).all():
        table[0] = 0
    assert (table[ids.long()] != their_map).sum() <= 1  # two queries may tie in float32


def test_an_id_that_transformers_repeats_is_two_ids_here():
    """Stuff, a thing, the same stuff, another thing: theirs counts on from the stuff's id."""
    classes = torch.full((4, CLASSES + 1), -9.0)
    for query, label in enumerate((0, 1, 0, 2)):
        classes[query, label] = 9
    masks = torch.full((4, 4, 8), -9.0)
    for query in range(4):
        masks[query, :, 2 * query : 2 * query + 2] = 9
    thresholds = {"threshold": 0.5, "mask_threshold": 0.5, "overlap_mask_area_threshold": 0.5}
    _, listed = theirs(classes, masks, {0}, (4, 8), **thresholds)
    assert [s["id"] for s in listed] == [1, 2, 1, 2]  # classes 1 and 2 have one id
    ids, segments = ours(classes, masks, {0}, (4, 8), **thresholds)
    assert [(s["id"], s["category_id"], s["area"]) for s in segments] == [
        (1, 0, 16), (2, 1, 8), (3, 2, 8),
    ]  # fmt: skip
    assert ids[0].tolist() == [1, 1, 2, 2, 1, 1, 3, 3]


def test_nothing_is_found_below_the_threshold():
    classes, masks = random_outputs(0, 5)
    ids, segments = ours(
        classes, masks, set(), (4, 6), threshold=1.0, mask_threshold=0.5,
        overlap_mask_area_threshold=0.5,
    )  # fmt: skip
    assert segments == [] and ids.shape == (4, 6) and ids.dtype == torch.int32 and not ids.any()
