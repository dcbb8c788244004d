"""Every backend of ms_deform_attn against the definition, gradients, and memory."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.layers import ms_deform_attn, ms_deform_attn_cpu

side = st.integers(1, 7)
cases = {
    "shapes": st.lists(st.tuples(side, side), min_size=1, max_size=4),
    "batch": st.integers(1, 3),
    "queries": st.integers(1, 9),
    "heads": st.integers(1, 3),
    "channels": st.integers(1, 9),
    "points": st.integers(1, 4),
    "seed": st.integers(0, 1000),
}


def make_inputs(shapes, batch, queries, heads, channels, points, seed, dtype=torch.float64):
    """Values, locations that leave the map by up to 60% of its size, and weights."""
    generator = torch.Generator().manual_seed(seed)
    positions, levels = sum(h * w for h, w in shapes), len(shapes)
    value = torch.randn(batch, positions, heads, channels, generator=generator, dtype=dtype)
    samples = (batch, queries, heads, levels, points)
    locations = torch.rand(*samples, 2, generator=generator, dtype=dtype) * 2.2 - 0.6
    return value, locations, torch.rand(*samples, generator=generator, dtype=dtype)


def output_and_gradients(inputs, shapes, backend):
    leaves = [t.clone().requires_grad_() for t in inputs]
    out = ms_deform_attn(leaves[0], shapes, leaves[1], leaves[2], backend=backend)
    generator = torch.Generator().manual_seed(7)
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    out.backward(grad.to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def by_hand(value, shapes, locations, weights):
    """One output element after the other, from the formula of bilinear interpolation."""
    batch, _, heads, channels = value.shape
    out = torch.zeros(batch, locations.shape[1], heads, channels, dtype=value.dtype)
    for b, q, m, level, p in torch.cartesian_prod(
        *(torch.arange(n) for n in locations.shape[:5])
    ).tolist():
        height, width = shapes[level]
        start = sum(h * w for h, w in shapes[:level])
        x = float(locations[b, q, m, level, p, 0]) * width - 0.5
        y = float(locations[b, q, m, level, p, 1]) * height - 0.5
        for row in range(height):
            for column in range(width):
                share = max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
                position = start + row * width + column
                out[b, q, m] += weights[b, q, m, level, p] * share * value[b, position, m]
    return out.flatten(2)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_equals_sum_written_by_hand(backend):
    shapes = [(3, 4), (1, 5), (2, 1)]
    inputs = make_inputs(shapes, 2, 4, 2, 3, 2, seed=0)
    expected = by_hand(inputs[0], shapes, inputs[1], inputs[2])
    found = ms_deform_attn(inputs[0], shapes, inputs[1], inputs[2], backend=backend)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("x", "expected"), [(0.25, 2.0), (0.5, 4.0), (0.0, 1.0), (1.3, 0.0)])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_example_of_the_docstring(backend, x, expected):
    value = torch.tensor([2.0, 6.0]).view(1, 2, 1, 1)
    location = torch.tensor([x, 0.5]).view(1, 1, 1, 1, 1, 2)
    out = ms_deform_attn(value, [(1, 2)], location, torch.ones(1, 1, 1, 1, 1), backend=backend)
    assert out.item() == pytest.approx(expected, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(**cases)
def test_cpu_equals_reference(shapes, batch, queries, heads, channels, points, seed):
    inputs = make_inputs(shapes, batch, queries, heads, channels, points, seed)
    expected = output_and_gradients(inputs, shapes, "reference")
    found = output_and_gradients(inputs, shapes, "cpu")
    for theirs, ours in zip(expected, found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_cpu_equals_reference_across_parts_and_blocks(monkeypatch):
    shapes = [(6, 5), (3, 3)]
    inputs = make_inputs(shapes, 2, 50, 2, 8, 3, seed=1)
    expected = output_and_gradients(inputs, shapes, "reference")
    monkeypatch.setattr(ms_deform_attn_cpu, "_ELEMENTS", 7 * 2 * 6)
    monkeypatch.setattr(ms_deform_attn_cpu, "_BLOCK", 21)
    for theirs, ours in zip(expected, output_and_gradients(inputs, shapes, "cpu"), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_value_gradient_without_scipy(monkeypatch):
    shapes = [(6, 5), (3, 3)]
    inputs = make_inputs(shapes, 1, 300, 2, 8, 3, seed=2)
    expected = output_and_gradients(inputs, shapes, "cpu")
    monkeypatch.setattr(ms_deform_attn_cpu, "_scipy_sparse", lambda: None)
    for theirs, ours in zip(expected, output_and_gradients(inputs, shapes, "cpu"), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_on_pixel_centres_are_those_of_grid_sample():
    shapes = [(4, 4)]  # centres are exact in binary: every sample lies on a kink
    value, locations, weights = make_inputs(shapes, 1, 200, 1, 2, 3, seed=3)
    locations = (locations * 4).round() / 4 + 0.125
    inputs = (value, locations, weights)
    expected = output_and_gradients(inputs, shapes, "reference")
    for theirs, ours in zip(expected, output_and_gradients(inputs, shapes, "cpu"), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("shapes", [[(3, 4), (2, 2)], [(1, 3)], [(1, 1)]])
def test_gradcheck(backend, shapes):
    inputs = [t.requires_grad_() for t in make_inputs(shapes, 2, 3, 2, 2, 2, seed=4)]
    assert torch.autograd.gradcheck(
        lambda v, loc, w: ms_deform_attn(v, shapes, loc, w, backend=backend), inputs
    )


@pytest.mark.parametrize(
    "wanted", [(True, False, False), (False, True, False), (False, False, True)]
)
def test_only_wanted_gradients_are_made(wanted):
    shapes = [(3, 4)]
    inputs = make_inputs(shapes, 1, 5, 1, 2, 2, seed=5)
    full = output_and_gradients(inputs, shapes, "cpu")[1:]
    leaves = [t.clone().requires_grad_(on) for t, on in zip(inputs, wanted, strict=True)]
    out = ms_deform_attn(leaves[0], shapes, leaves[1], leaves[2], backend="cpu")
    generator = torch.Generator().manual_seed(7)
    out.backward(torch.randn(out.shape, generator=generator, dtype=out.dtype))
    for leaf, on, expected in zip(leaves, wanted, full, strict=True):
        assert (leaf.grad is not None) == on
        if on:
            torch.testing.assert_close(leaf.grad, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_half_values_are_summed_in_float32(backend, dtype):
    shapes = [(5, 6), (3, 2)]
    value, locations, weights = make_inputs(shapes, 1, 20, 2, 8, 4, seed=6, dtype=torch.float32)
    out = ms_deform_attn(value.to(dtype), shapes, locations, weights, backend=backend)
    expected = ms_deform_attn(value.to(dtype).float(), shapes, locations, weights)
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected.to(dtype), atol=1e-2, rtol=1e-2)


def test_under_autocast_locations_keep_their_precision():
    shapes = [(64, 64)]
    inputs = make_inputs(shapes, 1, 30, 2, 4, 2, seed=7, dtype=torch.float32)
    plain = ms_deform_attn(inputs[0], shapes, inputs[1], inputs[2])
    with torch.autocast("cpu", torch.bfloat16):
        cast = ms_deform_attn(inputs[0], shapes, inputs[1], inputs[2])
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, plain)


def test_one_image_equals_the_same_image_in_a_batch():
    shapes = [(5, 4), (2, 3)]
    inputs = make_inputs(shapes, 3, 11, 2, 4, 2, seed=8)
    together = ms_deform_attn(inputs[0], shapes, inputs[1], inputs[2])
    for i in range(3):
        value, locations, weights = (t[i : i + 1] for t in inputs)
        torch.testing.assert_close(
            ms_deform_attn(value, shapes, locations, weights)[0], together[i]
        )


def test_non_contiguous_inputs():
    shapes = [(4, 3)]
    inputs = make_inputs(shapes, 2, 5, 2, 4, 2, seed=9)
    strided = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in inputs]
    for theirs, ours in zip(
        output_and_gradients(inputs, shapes, "cpu"),
        output_and_gradients(strided, shapes, "cpu"),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_location_that_is_no_number_spoils_only_its_query():
    shapes = [(4, 3)]
    value, locations, weights = make_inputs(shapes, 1, 5, 1, 4, 2, seed=10)
    locations[0, 2] = float("nan")
    out = ms_deform_attn(value, shapes, locations, weights, backend="cpu")[0]
    assert out[2].isnan().all()
    assert not out[[0, 1, 3, 4]].isnan().any()


def test_training_after_inference_mode():
    """What is kept from one call to the next must not be tied to inference mode."""
    shapes = [(4, 3), (6, 5), (2, 7)]
    inputs = make_inputs(shapes, 1, 5, 2, 4, 2, seed=16)
    with torch.inference_mode():
        ms_deform_attn(inputs[0], shapes, inputs[1], inputs[2])
    expected = output_and_gradients(inputs, shapes, "reference")
    for theirs, ours in zip(expected, output_and_gradients(inputs, shapes, "cpu"), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_no_query():
    value, locations, weights = make_inputs([(4, 3)], 1, 0, 2, 4, 2, seed=11)
    value.requires_grad_()
    out = ms_deform_attn(value, [(4, 3)], locations, weights)
    assert out.shape == (1, 0, 8)
    out.sum().backward()
    assert value.grad.abs().sum() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shapes": [(4, 4)]}, "16 positions, value has 12"),
        ({"shapes": [(4, 3), (0, 5)]}, "at least one pixel"),
        ({"weights": torch.ones(1, 5, 2, 1, 3)}, "attention_weights"),
        ({"locations": torch.zeros(1, 5, 1, 1, 2, 2)}, "do not fit batch 1, 2 heads"),
        ({"value": torch.zeros(12, 2, 4)}, "needs value"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    value, locations, weights = make_inputs([(4, 3)], 1, 5, 2, 4, 2, seed=12)
    given_ = {"value": value, "shapes": [(4, 3)], "locations": locations, "weights": weights}
    given_.update(change)
    with pytest.raises(ValueError, match=message):
        ms_deform_attn(*given_.values())


def test_unknown_backend_is_an_error_with_a_hint():
    value, locations, weights = make_inputs([(4, 3)], 1, 5, 2, 4, 2, seed=13)
    with pytest.raises(ConfigError, match="did you mean 'triton'"):
        ms_deform_attn(value, [(4, 3)], locations, weights, backend="tritn")


def test_compiles_without_a_graph_break():
    explain = torch._dynamo.explain  # tracing alone: no compiler is needed
    inputs = make_inputs([(4, 3)], 1, 5, 2, 4, 2, seed=14, dtype=torch.float32)
    found = explain(lambda v, loc, w: ms_deform_attn(v, [(4, 3)], loc, w))(*inputs)
    assert found.graph_break_count == 0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux' /proc")
def test_memory_stays_flat():
    """Stacked samples would take 126 MB here, their gradients as much again."""
    shapes = [(16, 16), (32, 32), (64, 64), (70, 70)]
    inputs = make_inputs(shapes, 1, 10276, 8, 24, 4, seed=15, dtype=torch.float32)
    leaves = [t.requires_grad_() for t in inputs]
    ms_deform_attn(leaves[0], shapes, leaves[1][:, :9], leaves[2][:, :9]).sum().backward()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak
    before = peak_megabytes()
    out = ms_deform_attn(leaves[0], shapes, leaves[1], leaves[2])
    assert peak_megabytes() - before < 30  # the output itself is 8 MB
    out.sum().backward()
    assert peak_megabytes() - before < 90  # the gradients are 8 + 10.5 + 5.3 MB


def peak_megabytes():
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024
