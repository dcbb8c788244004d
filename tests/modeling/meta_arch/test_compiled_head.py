"""MODEL.MASK_FORMER.COMPILE with torch.compile's own backend, inductor: losses and gradients.

On a CPU building the C++ takes over a minute and a half of processor time, so that this is for CUDA
alone; test_mask_former.py traces and differentiates the same parts without a compiler.
"""

from __future__ import annotations

import pytest
import torch

from tests.tiny.mask_former import build, mapped, train

# Points at random alone: the choice of uncertain ones may turn on the last bit of a logit.
SMALLEST = {
    "MODEL.MASK_FORMER.DEC_LAYERS": 2,
    "MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO": 0.0,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ["res4", "res5"],
}


def losses_and_gradients(model, device):
    torch.manual_seed(1)
    losses = train(model.to(device), [mapped((32, 64))])
    # One decoder layer looks at one level: what belongs to the others has no gradient.
    found = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
    return losses, found


def check_inductor(device, tolerance):
    keys = {**SMALLEST, "MODEL.DEVICE": device}
    plain, compiled = build(**keys), build(**keys, **{"MODEL.MASK_FORMER.COMPILE": True})
    expected, gradients = losses_and_gradients(plain, device)
    found, compiled_gradients = losses_and_gradients(compiled, device)
    assert torch._dynamo.utils.counters["inductor"]
    assert found == pytest.approx(expected, rel=tolerance)
    assert compiled_gradients.keys() == gradients.keys()
    for name, theirs in gradients.items():
        difference = (compiled_gradients[name] - theirs).abs().max()
        assert difference <= tolerance * max(1e-2, theirs.abs().max()), name


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Without an empty cache, the code of an earlier run would be used, and nothing be tested."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.gpu
def test_inductor_on_cuda_gives_the_same(gpu):
    if gpu == "cpu":
        pytest.skip("inductor takes minutes on a CPU; test_mask_former.py traces the same parts")
    check_inductor(gpu, 1e-2)
