"""Time and memory of the deformable attention core, against grid_sample and against transformers.

    OMP_NUM_THREADS=2 python benchmarks/ms_deform_attn.py [--size 1024] [--batch 1] [--repeats 7]
        [--dtype fp32] [--device cpu]

The setting is encoder self-attention over strides 8, 16 and 32 with 8 heads of 32 channels and 4
points. All implementations take turns, so that other work on the machine slows all of them. Printed
are medians and minima, the growth of the peak of resident memory (Linux) or of allocated memory
(CUDA), and the memory bandwidth as a share of that of a plain copy in the same run. The bandwidth
is the number of bytes that must be read and written at least once, divided by the time. Values and
weights are of `--dtype`; locations are float32, as models compute them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import transformers
from peak_memory import peak_growth
from torch import Tensor
from torch.nn import functional as F
from transformers.models.mask2former import modeling_mask2former

from panoptic_ext.modeling.layers import ms_deform_attn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HEADS, CHANNELS, POINTS = 8, 32, 4


def stacked_grid_sample(value: Tensor, shapes: list, locations: Tensor, weights: Tensor) -> Tensor:
    """The usual fallback: sample every level, stack all samples, weight them, sum."""
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    grids = 2 * locations - 1
    samples = []
    for level, part in enumerate(value.split([h * w for h, w in shapes], dim=1)):
        maps = part.flatten(2).transpose(1, 2).reshape(batch * heads, channels, *shapes[level])
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1).to(value.dtype)
        samples.append(F.grid_sample(maps, grid, align_corners=False))
    share = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    out = (torch.stack(samples, dim=-2).flatten(-2) * share).sum(-1)
    return out.view(batch, heads * channels, queries).transpose(1, 2).contiguous()


def transformers_core(value: Tensor, shapes: list, locations: Tensor, weights: Tensor) -> Tensor:
    """The function of transformers' Mask2Former."""
    core = modeling_mask2former.multi_scale_deformable_attention
    return core(value, shapes, locations.to(value.dtype), weights)


CORES = {
    "grid_sample": stacked_grid_sample,
    "transformers": transformers_core,
    "ours": ms_deform_attn,
}


def make_inputs(
    size: int, batch: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, list, Tensor, Tensor]:
    """Inputs in which every position is a query that samples pixels around itself in each level."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(size // stride, size // stride) for stride in (32, 16, 8)]
    centres = [
        torch.stack(
            torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")[
                ::-1
            ],
            dim=-1,
        ).view(-1, 2)
        for h, w in shapes
    ]
    places = torch.cat(centres)[None, :, None, None, None]
    positions = places.shape[1]
    spread = torch.randn(batch, positions, HEADS, 3, POINTS, 2, generator=generator) * 2
    extent = torch.tensor([[w, h] for h, w in shapes]).view(1, 1, 1, 3, 1, 2)
    weights = torch.randn(batch, positions, HEADS, 3 * POINTS, generator=generator).softmax(-1)
    value = torch.randn(batch, positions, HEADS, CHANNELS, generator=generator)
    return (
        value.to(device, dtype),
        shapes,
        (places + spread / extent).to(device),
        weights.view(batch, positions, HEADS, 3, POINTS).to(device, dtype),
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
    grad = torch.randn_like(value.flatten(2))

    def run() -> None:
        leaves = [t.detach().requires_grad_() for t in (value, locations, weights)]
        core(leaves[0], shapes, leaves[1], leaves[2]).backward(grad)

    return run


def in_turn(runs: list[Callable[[], None]], repeats: int, device: str) -> list[list[float]]:
    """Milliseconds of each run, taken alternately."""
    times: list[list[float]] = [[] for _ in runs]
    for repeat in range(repeats + 1):
        for run, milliseconds in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            if device != "cpu":
                torch.cuda.synchronize()
            if repeat:
                milliseconds.append((time.perf_counter() - start) * 1e3)
    return times


def copy_bandwidth(device: str) -> float:
    """Bytes a second that a plain copy of 256 MiB reads and writes."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    times = in_turn([lambda: target.copy_(source)], 5, device)[0]
    return 2 * source.nbytes / (statistics.median(times) / 1e3)


def least_traffic(inputs: tuple) -> tuple[int, int]:
    """Bytes read and written at least: forward; forward and backward together."""
    value, _, locations, weights = inputs
    given, output = value.nbytes + locations.nbytes + weights.nbytes, value.nbytes
    # The backward pass reads the inputs and the output's gradient and writes the inputs' own.
    return given + output, 3 * given + 2 * output


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=1024, help="side of the input image, pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    """Print one line a measurement and the ratios."""
    options = parse_options()
    inputs = make_inputs(options.size, options.batch, DTYPES[options.dtype], options.device)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(
        f"{options.size} x {options.size}, batch {options.batch}, {options.dtype}, {name}, "
        f"{torch.get_num_threads()} threads, transformers {transformers.__version__}"
    )
    with torch.no_grad():
        outputs = {core: run(*inputs).float() for core, run in CORES.items()}
    for core in list(CORES)[:-1]:
        gap = (outputs[core] - outputs["ours"]).abs().max().item()
        print(f"largest difference to {core}: {gap:.1e}")
    bandwidth = copy_bandwidth(options.device)
    print(f"a copy: {bandwidth / 1e9:.1f} GB/s")
    works = (("forward", forward_only), ("forward + backward", forward_backward))
    for (title, make), traffic in zip(works, least_traffic(inputs), strict=True):
        runs = [make(run, inputs) for run in CORES.values()]
        times = dict(zip(CORES, in_turn(runs, options.repeats, options.device), strict=True))
        # The one with the smallest peak first, because memory once touched may stay resident.
        memory = [peak_growth(run, options.device) for run in reversed(runs)][::-1]
        for (core, milliseconds), grown in zip(times.items(), memory, strict=True):
            median = statistics.median(milliseconds)
            share = traffic / (median / 1e3) / bandwidth
            ratio = median / statistics.median(times["ours"])
            print(
                f"{title:18} {core:12} median {median:7.1f} ms, least {min(milliseconds):7.1f} ms, "
                f"+{grown:.0f} MiB, {share:.1%} of a copy's bandwidth"
                + ("" if core == "ours" else f"; ours {ratio:.1f}x as fast")
            )


if __name__ == "__main__":
    main()
