"""Parts of benchmarks/gpu_suite.py: kernels, models against transformers', fusions, evaluator."""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import eomt_sides
import evaluation
import fusion as fusion_sides
import mask2former_sides
import ms_deform_attn as attention
import torch
from mask2former import RUNS, autocast_of
from peak_memory import peak_growth

from panoptic_ext.evaluation import PanopticEvaluator

if TYPE_CHECKING:
    from gpu_suite import Suite

__all__ = ["evaluator", "fusions", "inference", "kernels", "training"]

Call = Callable[[], Any]
MODELS = ("mask2former-r50", "eomt-small", "eomt-large")


def kernels(suite: Suite) -> None:
    """Deformable attention: Triton, grid_sample and transformers' core, forward and backward."""
    # torch 2.4 has no grid_sample in half precision on a CPU.
    for dtype in ("fp32",) if suite.device == "cpu" else attention.DTYPES:
        for size, batch in [(64, 1)] if suite.smoke else [(512, 1), (1024, 1), (1024, 4)]:
            key = f"kernels/{dtype} {size} x {size} batch {batch}"
            suite.measure(key, partial(_kernel_row, suite, dtype, size, batch))


def _kernel_row(suite: Suite, dtype: str, size: int, batch: int) -> dict[str, Any]:
    inputs = attention.make_inputs(size, batch, attention.DTYPES[dtype], suite.device)
    cores = dict(attention.CORES)
    if suite.device == "cuda":  # what "auto" chooses; an error if it cannot run
        cores["ours"] = partial(attention.ms_deform_attn, backend="triton")
    with torch.no_grad():
        exact = attention.stacked_grid_sample(inputs[0].float(), *inputs[1:3], inputs[3].float())
        gap = (cores["ours"](*inputs).float() - exact).norm() / exact.norm()
    row: dict[str, Any] = {"relative error": gap.item()}
    bandwidth = _copy_bandwidth(suite)
    makes = {"forward": attention.forward_only, "both": attention.forward_backward}
    for (work, make), traffic in zip(makes.items(), attention.least_traffic(inputs), strict=True):
        for name, core in cores.items():
            row[f"{name} {work} ms"] = _milliseconds(suite, make(core, inputs))
        row[f"share of a copy, {work}"] = traffic / (row[f"ours {work} ms"] / 1e3) / bandwidth
    if dtype == "fp32":
        row["both, equal twice"] = _is_deterministic(cores["ours"], inputs)
    return row


def _is_deterministic(core: Callable[..., Any], inputs: tuple) -> bool:
    """Whether two backward passes give equal bits; atomic additions may not."""
    value, shapes, locations, weights = inputs
    gradients = []
    for _ in range(2):
        leaf = value.detach().requires_grad_()
        core(leaf, shapes, locations, weights).square().sum().backward()
        gradients.append(leaf.grad)
    return torch.equal(*gradients)


def _copy_bandwidth(suite: Suite) -> float:
    """Bytes a second that a plain copy reads and writes."""
    source = torch.ones(2**12 if suite.smoke else 2**28, device=suite.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / (_milliseconds(suite, lambda: target.copy_(source)) / 1e3)


def _milliseconds(suite: Suite, call: Call, least: float = 0.3) -> float:
    """Median time of a call, by events of the device on CUDA.

    Args:
        suite: chooses the clock.
        call: repeated for `least` seconds, 3 times or more; once in a smoke run.
        least: seconds.
    """
    on_cuda = suite.device == "cuda"
    warm_up, times = time.perf_counter(), []
    for _ in range(0 if suite.smoke else 3):
        call()
    if on_cuda:
        torch.cuda.synchronize()
    spent = (time.perf_counter() - warm_up) / 3
    for _ in range(1 if suite.smoke else max(3, min(200, int(least / max(spent, 1e-6))))):
        if on_cuda:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            call()
            last.record()
            last.synchronize()
            times.append(first.elapsed_time(last))
        else:
            start = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def training(suite: Suite) -> None:
    """Images a second and peak memory of a training step at 1024 x 1024 in bf16."""
    for model in _models(suite):
        for batch in (1,) if suite.smoke else (4, 8):
            for side in ("ours", "transformers"):
                key = f"training/{model} {_dtype(suite)} batch {batch} {side}"
                suite.measure(key, partial(_training_row, suite, model, batch, side))


def _training_row(suite: Suite, model: str, batch: int, side: str) -> dict[str, Any]:
    with _side_on_device(suite, model, batch, side) as calls:
        step = partial(RUNS["training"], calls, autocast_of(_dtype(suite), suite.device))
        step()  # makes the optimizer's state, which belongs to the loaded model
        calls.optimizer.zero_grad()
        memory = peak_growth(step, suite.device)
        milliseconds = _milliseconds(suite, step, least=4.0)
        return {
            "images a second": 1e3 * batch / milliseconds,
            "ms a step": milliseconds,
            "peak MiB above the model": memory,
            "waits a step": _waits(suite, step),
        }


def inference(suite: Suite) -> None:
    """Latency of one image and images a second of a batch, plain and compiled, fp32 and bf16."""
    for model in _models(suite):
        for dtype in (_dtype(suite),) if suite.smoke else ("fp32", "bf16"):
            for batch in (1,) if suite.smoke else (1, 8):
                # A smoke run leaves plain ones out: compiled ones do the same and more.
                plain = () if suite.smoke else ("ours", "transformers")
                for side in (*plain, "ours compiled", "transformers compiled"):
                    key = f"inference/{model} {dtype} batch {batch} {side}"
                    row = partial(_inference_row, suite, model, dtype, batch, side)
                    suite.measure(key, row)


def _inference_row(suite: Suite, model: str, dtype: str, batch: int, side: str) -> dict[str, Any]:
    name, _, compiled = side.partition(" ")
    with _side_on_device(suite, model, batch, name) as calls:
        if compiled:
            _compile(suite, calls)
        run = partial(RUNS["inference"], calls, autocast_of(dtype, suite.device))
        start = time.perf_counter()
        result = run()
        first = time.perf_counter() - start
        milliseconds = _milliseconds(suite, run, least=2.0)
        return {
            "ms a call": milliseconds,
            "images a second": 1e3 * batch / milliseconds,
            "peak MiB above the model": peak_growth(run, suite.device),
            "waits a call": _waits(suite, run),
            "first call s": first,
            "segments": _num_segments(result[0]),
        }


def _num_segments(result: dict[str, Any]) -> int:
    """Of our output, or of transformers'."""
    found = result["panoptic_seg"][1] if "panoptic_seg" in result else result["segments_info"]
    return len(found)


def _compile(suite: Suite, calls: Any) -> None:
    # A smoke run goes through the same calls and leaves the compiler out, which takes minutes.
    options = {"disable": suite.smoke}
    head = getattr(calls.model, "sem_seg_head", None)
    if head is None:
        calls.model.forward = torch.compile(calls.model.forward, **options)
    elif hasattr(head, "pixel_decoder"):  # as MODEL.MASK_FORMER.COMPILE does
        head.pixel_decoder.compile(**options)
        head.predictor.compile(**options)
    else:  # as MODEL.VIT.COMPILE does
        for block in calls.model.backbone.net.blocks:
            block.compile(**options)


def _waits(suite: Suite, call: Call) -> int | None:
    """How often the host waits for the device in a call, as torch reports it."""
    if suite.device != "cuda":
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


def _dtype(suite: Suite) -> str:
    """Of trainings; a CPU without instructions for bfloat16 takes several times as long in it."""
    return "fp32" if suite.device == "cpu" else "bf16"


def _models(suite: Suite) -> tuple[str, ...]:
    return ("mask2former-tiny", "eomt-tiny") if suite.smoke else MODELS


@cache
def _pair(model: str, side: int) -> tuple[Any, Any]:
    """transformers' model and ours, with equal weights, on the CPU."""
    family, _, size = model.partition("-")
    if family == "eomt":
        peer = eomt_sides.make_peer(size, "dinov2", side)
        return peer, eomt_sides.make_ours(peer, size, "dinov2", side)
    peer = mask2former_sides.make_peer((side, side), small=size == "tiny")
    return peer, mask2former_sides.make_ours(peer, "panoptic", small=size == "tiny")


@contextmanager
def _side_on_device(suite: Suite, model: str, batch: int, side: str) -> Iterator[Any]:
    """The calls of one side, which is on the device for as long as the context lasts."""
    length = 64 if suite.smoke else 1024
    # The host's clock without synchronising: the parts of a step are not timed here.
    if not suite.smoke and _pair.cache_info().currsize > 1:
        _pair.cache_clear()
    peer, ours = _pair(model, length)
    options = (batch, suite.device, time.perf_counter)
    if model.startswith("eomt"):
        sides = eomt_sides
        arguments: tuple[Any, ...] = (length, *options)
        our_arguments: tuple[Any, ...] = ((length, length), *options)
    else:
        sides = mask2former_sides
        arguments = our_arguments = ((length, length), *options)
    chosen = ours if side == "ours" else peer
    hooks = [(m, dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in chosen.modules()]
    kept = {name: vars(chosen).get(name) for name in ("postprocess", "forward")}
    try:
        if side == "ours":
            yield sides.Ours(ours, *our_arguments)
        else:
            yield sides.Peer(peer, ours, *arguments)
    finally:
        chosen.to("cpu").zero_grad(set_to_none=True)
        for name, value in kept.items():
            vars(chosen).pop(name, None)
            if value is not None:
                setattr(chosen, name, value)
        for module, after, before in hooks:
            for registered, former in (
                (module._forward_hooks, after),
                (module._forward_pre_hooks, before),
            ):
                registered.clear()
                registered.update(former)
            module._compiled_call_impl = None
        if suite.device == "cuda":
            torch.cuda.empty_cache()


def fusions(suite: Suite) -> None:
    """Fusions of 1024 x 2048 pixels against dense ones and against Detectron2's."""
    works: dict[str, Callable[[Any], dict[str, Call]]] = {
        "hadamard": fusion_sides.hadamard_sides,
        "argmax, paste, combine": fusion_sides.route_sides,
        "all of ours": fusion_sides.ours_sides,
    }
    for work, sides_of in works.items():
        for count in (3,) if suite.smoke else (20, 60, 100):
            key = f"fusion/{work}, {count} instances"
            suite.measure(key, partial(_fusion_row, suite, sides_of, count))


def _fusion_row(
    suite: Suite, sides_of: Callable[[Any], dict[str, Call]], count: int
) -> dict[str, Any]:
    sizes = {"SIZE": (64, 128), "COARSE": (16, 32)} if suite.smoke else {}
    with mock.patch.multiple(fusion_sides, **sizes) if sizes else mock.MagicMock():
        sides = sides_of(fusion_sides.Scene(count, suite.device))
        row: dict[str, Any] = {f"{n} ms": _milliseconds(suite, c) for n, c in sides.items()}
        if "dense" in sides:
            row["differing pixels"] = fusion_sides.differing(sides)
        for name in sides:
            if name in ("ours", "hadamard", "heuristic", "upsnet"):
                row[f"waits of {name}"] = _waits(suite, sides[name])
    return row


def evaluator(suite: Suite) -> None:
    """From maps on the device to PQ: one thread, and the threads of a usual evaluation."""
    sizes = {"64 x 96": (64, 96, 4, 2)} if suite.smoke else evaluation.SIZES
    for size, numbers in sizes.items():
        suite.measure(f"evaluator/{size}", partial(_evaluator_row, suite, numbers))


def _evaluator_row(suite: Suite, numbers: tuple[int, int, int, int]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        data = evaluation.Data(Path(folder), *numbers)
        outputs = [
            {"panoptic_seg": (ids.to(suite.device), segments)}
            for ids, segments in (output["panoptic_seg"] for output in data.outputs)
        ]

        def evaluate(threads: int) -> float:
            judge = PanopticEvaluator(evaluation.NAME, num_threads=threads)
            judge.reset()
            for sample, output in zip(data.inputs, outputs, strict=True):
                judge.process([sample], [output])
            return judge.evaluate()["panoptic_seg"]["PQ"]

        row: dict[str, Any] = {"PQ": evaluate(0)}
        for threads in (0, 2):
            start = time.perf_counter()
            if evaluate(threads) != row["PQ"]:
                raise RuntimeError(f"{threads} threads give another PQ")
            passed = time.perf_counter() - start
            row[f"ms an image, {threads} threads"] = 1e3 * passed / len(outputs)
    return row
