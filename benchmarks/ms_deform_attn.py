"""Time and memory of the deformable attention core, against grid_sample as published models use it.

    OMP_NUM_THREADS=2 python benchmarks/ms_deform_attn.py [--size 1024] [--repeats 7]

Setting: encoder self-attention over strides 8, 16 and 32, 8 heads of 32 channels, 4 points,
batch 1, float32. Both run in turn, so that a busy machine slows both; printed are medians and
minima, and the growth of the peak of resident memory (Linux) or of allocated memory (CUDA).
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from panoptic_ext.modeling.ops import ms_deform_attn

HEADS, CHANNELS, POINTS = 8, 32, 4


def stacked_grid_sample(value: Tensor, shapes: list, locations: Tensor, weights: Tensor) -> Tensor:
    """The usual fallback: sample every level, stack all samples, weight them, sum."""
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    grids = 2 * locations - 1
    samples = []
    for level, part in enumerate(value.split([h * w for h, w in shapes], dim=1)):
        maps = part.flatten(2).transpose(1, 2).reshape(batch * heads, channels, *shapes[level])
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        samples.append(F.grid_sample(maps, grid, align_corners=False))
    share = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    out = (torch.stack(samples, dim=-2).flatten(-2) * share).sum(-1)
    return out.view(batch, heads * channels, queries).transpose(1, 2).contiguous()


def make_inputs(size: int, device: str) -> tuple[Tensor, list, Tensor, Tensor]:
    """Every position asks, and samples some pixels of each level around its own place."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(size // stride, size // stride) for stride in (32, 16, 8)]
    own = [
        torch.stack(
            torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")[
                ::-1
            ],
            dim=-1,
        ).view(-1, 2)
        for h, w in shapes
    ]
    places = torch.cat(own)[None, :, None, None, None]
    positions = places.shape[1]
    spread = torch.randn(1, positions, HEADS, 3, POINTS, 2, generator=generator) * 2
    extent = torch.tensor([[w, h] for h, w in shapes]).view(1, 1, 1, 3, 1, 2)
    weights = torch.randn(1, positions, HEADS, 3 * POINTS, generator=generator).softmax(-1)
    value = torch.randn(1, positions, HEADS, CHANNELS, generator=generator)
    return (
        value.to(device),
        shapes,
        (places + spread / extent).to(device),
        weights.view(1, positions, HEADS, 3, POINTS).to(device),
    )


def forward_only(core: Callable, inputs: tuple) -> Callable[[], None]:
    """One call of `core` without gradients."""

    @torch.no_grad()
    def run() -> None:
        core(*inputs)

    return run


def forward_backward(core: Callable, inputs: tuple) -> Callable[[], None]:
    """One call of `core` and its gradients by values, locations and weights."""
    value, shapes, locations, weights = inputs
    grad = torch.randn(1, locations.shape[1], HEADS * CHANNELS, device=value.device)

    def run() -> None:
        leaves = [t.detach().requires_grad_() for t in (value, locations, weights)]
        core(leaves[0], shapes, leaves[1], leaves[2]).backward(grad)

    return run


def in_turn(runs: list[Callable[[], None]], repeats: int, device: str) -> list[list[float]]:
    """Milliseconds of each run, taken alternately."""
    times: list[list[float]] = [[] for _ in runs]
    for repeat in range(repeats + 1):
        for run, kept in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            if device != "cpu":
                torch.cuda.synchronize()
            if repeat:
                kept.append((time.perf_counter() - start) * 1e3)
    return times


def peak_growth(run: Callable[[], None], device: str) -> float:
    """MiB by which one more run raises the peak over what is held before it."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.exists():
        return float("nan")
    reset.write_text("5", encoding="ascii")
    before = _high_water(status)
    run()
    return _high_water(status) - before


def _high_water(status: Path) -> float:
    found = re.search(r"VmHWM:\s+(\d+)", status.read_text(encoding="ascii"))
    return int(found[1]) / 1024 if found else float("nan")


def main() -> None:
    """Print one line a measurement and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024, help="side of the input image, pixels")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    inputs = make_inputs(options.size, options.device)
    with torch.no_grad():
        gap = (stacked_grid_sample(*inputs) - ms_deform_attn(*inputs)).abs().max().item()
    print(f"{options.size} x {options.size}, {options.device}, {torch.get_num_threads()} threads")
    print(f"largest difference of the outputs: {gap:.1e}")
    for title, make in (("forward", forward_only), ("forward + backward", forward_backward)):
        runs = [make(core, inputs) for core in (stacked_grid_sample, ms_deform_attn)]
        times = in_turn(runs, options.repeats, options.device)
        memory = [peak_growth(run, options.device) for run in reversed(runs)][::-1]
        for name, kept, grown in zip(("grid_sample", "ours"), times, memory, strict=True):
            print(
                f"{title:18} {name:11} median {statistics.median(kept):7.1f} ms, "
                f"least {min(kept):7.1f} ms, +{grown:.0f} MiB"
            )
        ratio = statistics.median(times[0]) / statistics.median(times[1])
        least = min(times[0]) / min(times[1])
        print(f"{title:18} ratio of medians {ratio:.1f}, of minima {least:.1f}")


if __name__ == "__main__":
    main()
