"""The Triton backend: interpreted on CPU, compiled without a GPU, run where there is one."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from panoptic_ext.modeling.layers import ms_deform_attn
from panoptic_ext.modeling.layers import ms_deform_attn as ops_function
from tests import ROOT
from tests.modeling.layers.interpreted_case import TOLERANCE
from tests.modeling.layers.test_ms_deform_attn import make_inputs, output_and_gradients

dispatch = sys.modules[ops_function.__module__]


@pytest.mark.slow
def test_kernels_equal_the_reference_in_the_interpreter():
    pytest.importorskip("triton", minversion="3.2")
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name("interpreted_case.py"))],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    agreed = json.loads(done.stdout)
    assert set(agreed) == set(TOLERANCE) and sum(agreed.values()) > 9


@pytest.mark.slow
@pytest.mark.parametrize("values", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_cuda(values, capability, tmp_path, monkeypatch):
    """The interpreter accepts programs that the compiler refuses; this needs no GPU."""
    triton = pytest.importorskip("triton", minversion="3.2")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from panoptic_ext.modeling.layers import ms_deform_attn_triton as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    sizes = {
        "HEADS": 8,
        "LEVELS": 3,
        "POINTS": 4,
        "CHANNELS": 32,
        "PADDED": 32,
        "ROWS": 32,
        "NEED_VALUE": True,
    }
    pointers = {"value": values, "out": values, "grad_out": values, "table": "i32"}
    for kernel in (kernels._forward_kernel, kernels._backward_kernel):
        constants = {name: sizes[name] for name in kernel.arg_names if name in sizes}
        signature = {
            name: "constexpr"
            if name in constants
            else "i32"
            if name in ("total", "queries", "positions")
            else "*" + pointers.get(name, "fp32")
            for name in kernel.arg_names
        }
        source = ASTSource(kernel, signature, constexprs=constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert "cubin" in compiled.asm
        # A fence around every addition to the gradient of the values would empty the L1 cache.
        assert "acq_rel" not in compiled.asm["ptx"]


@pytest.mark.parametrize("missing", [True, False])
def test_falls_back_with_one_line(monkeypatch, caplog, missing):
    """Without Triton, or with it but without a CUDA device, the work is still done."""
    dispatch._log_fallback.cache_clear()
    if missing:
        monkeypatch.setattr(dispatch, "_triton_installed", lambda: False)
    inputs = make_inputs([(4, 3)], 1, 5, 2, 4, 2, seed=0, dtype=torch.float32)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            out = ms_deform_attn(inputs[0], [(4, 3)], inputs[1], inputs[2], backend="triton")
    dispatch._log_fallback.cache_clear()
    torch.testing.assert_close(out, ms_deform_attn(inputs[0], [(4, 3)], inputs[1], inputs[2]))
    assert len(caplog.records) == 1
    expected = "pip install triton" if missing else "need a CUDA device"
    if missing or dispatch._triton_installed():
        assert expected in caplog.text


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("interpreted", [False, True])
def test_float64_never_goes_to_triton(monkeypatch, caplog, device, interpreted):
    """Its kernels would compute in float32 without a word."""
    kernels = SimpleNamespace(runs_interpreted=lambda: interpreted)
    name = f"{dispatch.__package__}.ms_deform_attn_triton"
    monkeypatch.setitem(sys.modules, name, kernels)
    monkeypatch.setattr(dispatch, "_triton_installed", lambda: True)
    dispatch._log_fallback.cache_clear()
    where = torch.device(device)
    expected = "cpu" if device == "cpu" else "reference"
    with caplog.at_level(logging.WARNING):
        assert dispatch._choose_backend("auto", where, torch.float64) == expected
        assert not caplog.records
        assert dispatch._choose_backend("triton", where, torch.float64) == expected
    dispatch._log_fallback.cache_clear()
    assert "values are float64" in caplog.text
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        on_cuda = dispatch._choose_backend("auto", torch.device("cuda"), dtype)
        assert on_cuda == "triton"


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_float64_on_cuda_is_computed_in_float64(backend, gpu):
    shapes = [(5, 4), (3, 2)]
    inputs = [t.to(gpu) for t in make_inputs(shapes, 1, 9, 2, 8, 2, seed=0)]
    expected = output_and_gradients(inputs, shapes, "reference")
    for theirs, ours in zip(expected, output_and_gradients(inputs, shapes, backend), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
def test_a_location_that_is_no_number_is_seen_on_cuda(gpu):
    shapes = [(4, 3)]
    value, locations, weights = make_inputs(shapes, 1, 5, 1, 4, 2, 10, dtype=torch.float32)
    locations[0, 2] = float("nan")
    inputs = [t.to(gpu) for t in (value, locations, weights)]
    out = ms_deform_attn(inputs[0], shapes, *inputs[1:], backend="triton")[0]
    assert out[2].isnan().all()
    assert not out[[0, 1, 3, 4]].isnan().any()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_kernels_equal_the_reference_on_cuda(dtype, gpu):
    shapes = [(16, 17), (9, 8), (3, 5)]
    value, locations, weights = make_inputs(shapes, 2, 77, 8, 32, 4, seed=0, dtype=torch.float32)
    inputs = [t.to(gpu) for t in (value.to(dtype), locations, weights)]
    expected = output_and_gradients(inputs, shapes, "reference")
    found = output_and_gradients(inputs, shapes, "triton")
    tolerance = TOLERANCE[str(dtype).removeprefix("torch.")]
    for theirs, ours in zip(expected, found, strict=True):
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()
