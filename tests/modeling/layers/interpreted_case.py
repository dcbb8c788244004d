"""Run as a program under TRITON_INTERPRET=1: Triton's kernels against the reference.

A process of its own, because Triton decides at import whether its kernels are interpreted. It ends
with an AssertionError and Hypothesis' smallest example where they differ; else it prints, for each
type, how many cases agreed, as JSON.
"""

import json
import sys
from collections import Counter

import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from panoptic_ext.modeling.layers import ms_deform_attn

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}
FIXED = (
    # shapes, batch, queries, heads, channels, points, seed
    ([(3, 5), (1, 4)], 2, 7, 3, 6, 2, 0),
    ([(1, 1)], 1, 3, 2, 32, 4, 0),
    ([(4, 4), (7, 3), (2, 9)], 1, 35, 2, 8, 3, 0),
)
agreed: Counter[str] = Counter()


def make_inputs(case, dtype):
    """Values, locations that leave the map by up to 60% of its size, weights; output's gradient."""
    shapes, batch, queries, heads, channels, points, seed = case
    torch.manual_seed(seed)
    positions = sum(h * w for h, w in shapes)
    samples = (batch, queries, heads, len(shapes), points)
    inputs = (
        torch.randn(batch, positions, heads, channels).to(dtype),
        torch.rand(*samples, 2) * 2.2 - 0.6,
        torch.rand(*samples),
    )
    return inputs, torch.randn(batch, queries, heads * channels).to(dtype)


def output_and_gradients(inputs, grad, shapes, backend):
    leaves = [t.clone().requires_grad_() for t in inputs]
    out = ms_deform_attn(leaves[0], shapes, leaves[1], leaves[2], backend=backend)
    out.backward(grad)
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def check(case, name):
    """Output and gradients differ by less than the tolerance of the largest expected element."""
    inputs, grad = make_inputs(case, DTYPES[name])
    expected, found = (
        output_and_gradients(inputs, grad, case[0], backend) for backend in ("reference", "triton")
    )
    for theirs, ours in zip(expected, found, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        # The few elements of a tiny case may all nearly cancel: the inputs' size, 1, counts then.
        largest = max(theirs.float().abs().max().item(), 0.1)
        difference = (ours.float() - theirs.float()).abs().max().item()
        assert difference < TOLERANCE[name] * largest, (name, case, difference, largest)
    agreed[name] += 1


side = st.integers(1, 7)
cases = st.tuples(
    st.lists(st.tuples(side, side), min_size=1, max_size=3),
    st.integers(1, 2),
    st.integers(1, 12),
    st.integers(1, 3),
    st.sampled_from([1, 2, 3, 5, 8, 24, 33]),
    st.integers(1, 3),
    st.integers(0, 1000),
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases, st.sampled_from(sorted(DTYPES)))
@example(FIXED[0], "float32")
@example(FIXED[0], "float16")
@example(FIXED[0], "bfloat16")
@example(FIXED[1], "float32")
@example(FIXED[1], "float16")
@example(FIXED[1], "bfloat16")
@example(FIXED[2], "float32")
@example(FIXED[2], "float16")
@example(FIXED[2], "bfloat16")
def check_equal(case, name):
    check(case, name)


def check_no_number():
    """A location that is no number spoils its query's head, in output and weights, and no other."""
    shapes = [(4, 3), (2, 5)]
    for axis in (0, 1):
        inputs, grad = make_inputs((shapes, 1, 6, 2, 4, 2, 0), torch.float32)
        clean = output_and_gradients(inputs, grad, shapes, "triton")
        inputs[1][0, 2, 1, 0, 1, axis] = float("nan")
        expected = ms_deform_attn(inputs[0], shapes, *inputs[1:], backend="reference")
        found = output_and_gradients(inputs, grad, shapes, "triton")
        assert torch.equal(found[0].isnan(), expected.isnan()) and expected.isnan().any()
        assert found[3][0, 2, 1, 0, 1].isnan()
        others = torch.ones(6, dtype=torch.bool)
        others[2] = False
        for ours, theirs in ((found[i][0, others], clean[i][0, others]) for i in (0, 2, 3)):
            assert torch.equal(ours, theirs)


def check_compiled():
    """torch.compile keeps the kernels in one graph, with their gradients."""
    shapes = [(4, 3), (2, 5)]
    inputs, grad = make_inputs((shapes, 1, 6, 2, 4, 2, 0), torch.bfloat16)
    expected = output_and_gradients(inputs, grad, shapes, "triton")
    attend = torch.compile(
        lambda *leaves: ms_deform_attn(leaves[0], shapes, *leaves[1:], backend="triton"),
        backend="aot_eager",
        fullgraph=True,
    )
    leaves = [t.clone().requires_grad_() for t in inputs]
    out = attend(*leaves)
    out.backward(grad)
    for ours, theirs in zip((out, *(leaf.grad for leaf in leaves)), expected, strict=True):
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype


if __name__ == "__main__":
    check_equal()
    check_compiled()
    check_no_number()
    json.dump(agreed, sys.stdout)
