"""PlacedQueryTransformerDecoder: windows, places, parameters, and separation of equal objects."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import get_cfg
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext import add_panoptic_ext_config
from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.transformer_decoder import (
    MultiScaleMaskedTransformerDecoder,
    PlacedQueryTransformerDecoder,
    build_transformer_decoder,
)
from panoptic_ext.modeling.transformer_decoder.placed_query_decoder import (
    CELLS_PER_UNIT,
    DUPLICATE_RADIUS,
    INITIAL_HALF_SIDE,
    PEAKS_PER_QUERY,
    WINDOW_HEIGHT,
    WINDOW_RADIUS,
    coordinate_maps,
    distinct_first,
    peaks,
    window_coefficients,
)
from tests import ROOT
from tests.modeling.transformer_decoder.test_masked_transformer_decoder import SMALL, features

OWN = ("semantic_head", "place_head", "box_head", "place_feat", "place_embed", "window_embed")
PLACED = SMALL["num_queries"]
LEARNED = {"query_feat.weight", "query_embed.weight"}


def decoder(**changes):
    torch.manual_seed(0)
    return PlacedQueryTransformerDecoder(**{**SMALL, **changes})


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 300), st.integers(0, 99))
def test_a_window_is_a_paraboloid(height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    middle = (
        torch.randn(2, generator=generator) * torch.tensor([width, height]) / CELLS_PER_UNIT / 2
    )
    radius = 0.1 + torch.rand(2, generator=generator) * 3
    maps = coordinate_maps(height, width)
    window = torch.einsum("c,chw->hw", window_coefficients(middle, radius), maps)
    for row, column in {(0, 0), (height - 1, width - 1), (height // 2, width // 3)}:
        x = (column + 0.5 - width / 2) / CELLS_PER_UNIT
        y = (row + 0.5 - height / 2) / CELLS_PER_UNIT
        distance = ((x - middle[0]) / radius[0]) ** 2 + ((y - middle[1]) / radius[1]) ** 2
        expected = WINDOW_HEIGHT * (1 - distance)
        torch.testing.assert_close(window[row, column], expected, rtol=1e-4, atol=1e-2)


def naive_peaks(heat, count):
    height, width = heat.shape
    ranked = []
    for row in range(height):
        for column in range(width):
            around = heat[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            value = float(heat[row, column])
            below = value < float(around.max())
            ranked.append((below, value if below else -value, row * width + column))
    return [position for *_, position in sorted(ranked)[:count]]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 30), st.integers(0, 99))
def test_peaks_equal_naive_ones(height, width, count, seed):
    generator = torch.Generator().manual_seed(seed)
    heat = torch.randn(2, 1, height, width, generator=generator)
    found = peaks(heat, count)
    assert found.tolist() == [naive_peaks(image[0], count) for image in heat]


def naive_distinct_first(positions, places, boxes, count):
    kept, repeated = [], []
    for j, (x, y) in enumerate(places):
        inside = [
            ((x - mx) / hx) ** 2 + ((y - my) / hy) ** 2 < DUPLICATE_RADIUS**2
            for mx, my, hx, hy in boxes[:j]
        ]
        (repeated if any(inside) else kept).append(positions[j])
    return [*kept, *reversed(repeated)][:count]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_distinct_first_equals_naive_one(number, count, seed):
    generator = torch.Generator().manual_seed(seed)
    positions = torch.stack([torch.randperm(50, generator=generator)[:number] for _ in range(2)])
    places = torch.rand(2, number, 2, generator=generator)
    boxes = torch.cat((places, 0.05 + 0.3 * torch.rand(2, number, 2, generator=generator)), -1)
    found = distinct_first(positions, places, boxes, count)
    for image in range(2):
        lists = [x[image].tolist() for x in (positions, places, boxes)]
        assert found[image].tolist() == naive_distinct_first(*lists, count)


def test_two_peaks_of_a_large_object_give_one_query_and_neighbours_two():
    positions = torch.tensor([[0, 1, 2]])
    places = torch.tensor([[[0.0, 0.0], [0.5, 0.3], [1.1, 0.0]]])
    boxes = torch.tensor([[[0.1, 0.0, 0.9, 0.9], [0.4, 0.2, 0.9, 0.9], [2.0, 0.0, 0.9, 0.9]]])
    assert distinct_first(positions, places, boxes, 2).tolist() == [[0, 2]]
    assert distinct_first(positions, places, boxes, 3).tolist() == [[0, 2, 1]]


def test_shapes_with_and_without_auxiliary_outputs():
    model = decoder()
    outputs = model(*features(), aux=True)
    assert outputs.pred_logits.shape == (2, PLACED, SMALL["num_classes"] + 1)
    assert outputs.dense_masks().shape == (2, PLACED, 21, 25)
    assert outputs.semantic_logits.shape == (2, SMALL["num_classes"], 21, 25)
    assert outputs.places.centre_logits.shape == (2, 1, 21, 25)
    assert outputs.places.boxes.shape == (2, 4, 21, 25)
    assert outputs.places.points.shape == (2, PLACED, 2)
    assert len(outputs.aux_outputs) == SMALL["num_layers"]


def test_masks_are_products_of_embeddings_with_shared_features():
    outputs = decoder().eval()(*features(), aux=True)
    shared = outputs.pred_masks.features
    for output in outputs.predictions:
        assert output.pred_masks.features is shared
        expected = torch.einsum("bqd,bdhw->bqhw", output.pred_masks.embed, shared)
        torch.testing.assert_close(output.dense_masks(), expected, rtol=1e-4, atol=1e-4)


def chosen_positions(outputs):
    heat, boxes = outputs.places.centre_logits, outputs.places.boxes.flatten(2)
    height, width = heat.shape[-2:]
    candidates = peaks(heat, PEAKS_PER_QUERY * PLACED)
    x, y = (candidates % width + 0.5) / width, (candidates // width + 0.5) / height
    boxes = torch.stack([boxes[i, :, own].t() for i, own in enumerate(candidates)])
    return distinct_first(candidates, torch.stack((x, y), -1), boxes, PLACED)


def test_windows_begin_around_the_peaks():
    model = decoder().eval()
    torch.nn.init.zeros_(model.mask_embed.layers[-1].weight)
    torch.nn.init.zeros_(model.mask_embed.layers[-1].bias)  # leaves the windows alone in the masks
    levels, mask_features = features()
    first = model(levels, mask_features, aux=True).aux_outputs[0].dense_masks()
    chosen = chosen_positions(model(levels, mask_features, aux=False))
    assert torch.equal(first.flatten(2).argmax(-1), chosen)
    # The area of an ellipse, as far as it lies inside of the map.
    assert (first > 0).sum((2, 3)).max() <= 1.2 * torch.pi * (
        WINDOW_RADIUS * INITIAL_HALF_SIDE * CELLS_PER_UNIT
    ) ** 2


def test_places_and_boxes_have_the_documented_coordinates():
    model = decoder()
    torch.nn.init.normal_(model.box_head[-1].weight)
    levels, mask_features = features()
    outputs = model(levels, mask_features, aux=False)
    height, width = mask_features.shape[-2:]
    chosen = chosen_positions(outputs)
    for image, places in enumerate(outputs.places.points.tolist()):
        for position, (x, y) in zip(chosen[image].tolist(), places, strict=True):
            assert x == pytest.approx((position % width + 0.5) / width, abs=1e-6)
            assert y == pytest.approx((position // width + 0.5) / height, abs=1e-6)
    shift, growth = model.box_head(mask_features).chunk(2, dim=1)
    row, column = 3, 20
    boxes = outputs.places.boxes[1, :, row, column].tolist()
    dx, dy = (CELLS_PER_UNIT * INITIAL_HALF_SIDE * shift[1, :, row, column]).tolist()
    half_x, half_y = (CELLS_PER_UNIT * INITIAL_HALF_SIDE * growth[1, :, row, column].exp()).tolist()
    expected = [(column + 0.5 + dx) / width, (row + 0.5 + dy) / height]
    expected += [half_x / width, half_y / height]
    assert boxes == pytest.approx(expected, rel=1e-4)


def test_bf16_makes_no_neighbours_of_peaks():
    model = decoder().eval()
    levels, _ = features(batch=1)
    mask_features = torch.randn(1, 10, 80, 80, generator=torch.Generator().manual_seed(2))
    smooth = torch.nn.functional.avg_pool2d(mask_features, 9, 1, 4)
    with torch.autocast("cpu", torch.bfloat16):
        heat = model(levels, smooth, aux=False).places.centre_logits
    assert heat.dtype == torch.float32
    found = torch.nn.functional.max_pool2d(heat, 3, 1, 1) == heat
    exact = model(levels, smooth, aux=False).places.centre_logits
    expected = torch.nn.functional.max_pool2d(exact, 3, 1, 1) == exact
    assert found.sum() < 1.5 * expected.sum()


def test_their_number_is_no_parameter_and_small_maps_have_fewer():
    few, many = decoder(), decoder(num_queries=500)
    many.load_state_dict(few.state_dict())
    few, many = few.eval()(*features(), aux=False), many.eval()(*features(), aux=False)
    assert few.pred_logits.shape[1] == PLACED
    assert many.pred_logits.shape[1] == 500
    levels, mask_features = features()
    small = decoder(num_queries=500)(levels, mask_features[..., :4, :5], aux=False)
    assert small.pred_logits.shape[1] == 20


def test_parameters_are_those_of_the_published_decoder_and_its_own():
    names = set(decoder().state_dict())
    published = set(MultiScaleMaskedTransformerDecoder(**SMALL).state_dict())
    assert published - names == LEARNED
    assert all(name.startswith(OWN) for name in names - published)


def test_gradient_reaches_every_parameter():
    model = decoder(in_channels=7, num_layers=3)
    levels, mask_features = features(channels=7)
    outputs = model(levels, mask_features, aux=True)
    total = sum(o.pred_logits.sum() + o.dense_masks().sum() for o in outputs.predictions)
    maps = (outputs.places.centre_logits, outputs.places.boxes, outputs.semantic_logits)
    (total + sum(each.sum() for each in maps)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert model.window_embed.weight.grad.any()


def test_bf16_keeps_the_windows_of_a_large_map():
    model = decoder().eval()
    levels, _ = features(batch=1)
    mask_features = torch.randn(1, 10, 200, 320, generator=torch.Generator().manual_seed(2))
    torch.nn.init.zeros_(model.mask_embed.layers[-1].weight)
    torch.nn.init.zeros_(model.mask_embed.layers[-1].bias)
    torch.nn.init.zeros_(model.place_head[0].weight)  # the same places in both
    exact = model(levels, mask_features, aux=False).dense_masks()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(levels, mask_features, aux=False).dense_masks()
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=1e-3, atol=0.1)


def test_config_builds_it_and_refuses_rounded_products():
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/common/mask2former/Base-Mask2Former-Small.yaml"))
    keys = cfg.MODEL.MASK_FORMER
    keys.TRANSFORMER_DECODER_NAME = "PlacedQueryTransformerDecoder"
    keys.NUM_OBJECT_QUERIES = 3
    assert build_transformer_decoder(cfg, 64).num_queries == 3
    cfg.FLOAT32_PRECISION = "high"
    with pytest.raises(ConfigError, match=r"FLOAT32_PRECISION is 'high'.*highest"):
        build_transformer_decoder(cfg, 64)
