"""Run as a program under TRITON_INTERPRET=1: prints how far Triton is from the reference, as JSON.

A process of its own, because Triton decides at import whether its kernels are interpreted.
"""

import json
import sys

import torch

from panoptic_ext.modeling.ops import ms_deform_attn

CASES = (
    # shapes, batch, queries, heads, channels, points
    ([(3, 5), (1, 4)], 2, 7, 3, 6, 2),
    ([(1, 1)], 1, 3, 2, 32, 4),
    ([(4, 4), (7, 3), (2, 9)], 1, 35, 2, 8, 3),
)


def measure(case, dtype):
    """Largest difference of output and gradients, relative to the largest expected element."""
    shapes, batch, queries, heads, channels, points = case
    torch.manual_seed(0)
    positions = sum(h * w for h, w in shapes)
    samples = (batch, queries, heads, len(shapes), points)
    inputs = (
        torch.randn(batch, positions, heads, channels).to(dtype),
        torch.rand(*samples, 2) * 2.2 - 0.6,
        torch.rand(*samples),
    )
    grad = torch.randn(batch, queries, heads * channels).to(dtype)
    results = {}
    for backend in ("reference", "triton"):
        leaves = [t.clone().requires_grad_() for t in inputs]
        out = ms_deform_attn(leaves[0], shapes, leaves[1], leaves[2], backend=backend)
        out.backward(grad)
        results[backend] = [out.detach(), *(leaf.grad for leaf in leaves)]
    return [
        float((a.float() - b.float()).abs().max() / a.float().abs().max().clamp(min=1e-6))
        for a, b in zip(results["reference"], results["triton"], strict=True)
    ]


if __name__ == "__main__":
    dtypes = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    json.dump({name: [measure(c, d) for c in CASES] for name, d in dtypes.items()}, sys.stdout)
