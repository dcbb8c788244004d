"""EoMT on CUDA: the numbers of the CPU, mixed precision, compiled blocks."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("timm", reason="timm is not installed")

from tests.tiny.eomt import DINOV2, DINOV3, build
from tests.tiny.mask_former import mapped

pytestmark = pytest.mark.gpu  # skipped without a device, see conftest.py


@pytest.fixture(params=[DINOV2, DINOV3])
def model(request):
    return build(**{"MODEL.VIT.NAME": request.param}).eval()


def predictions(model, inputs):
    with torch.no_grad():
        outputs = model.outputs(model.preprocess_image(inputs).tensor)
    return outputs.pred_logits.float().cpu(), outputs.dense_masks().float().cpu()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(None, 1e-3), (torch.bfloat16, 0.2), (torch.float16, 0.05)]
)
def test_predictions_are_those_of_the_cpu(model, dtype, tolerance, gpu):
    inputs = [mapped(seed=0), mapped(seed=1)]
    expected = predictions(model, inputs)
    on_gpu = copy.deepcopy(model).to(gpu)
    with torch.autocast(gpu, dtype, enabled=dtype is not None):
        found = predictions(on_gpu, inputs)
    for values, others in zip(found, expected, strict=True):
        difference = (values - others).abs().mean() / others.abs().mean()
        assert difference < tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_gives_every_parameter_a_finite_gradient(model, dtype, compiled, gpu):
    if compiled and gpu == "cpu":
        pytest.skip("inductor takes minutes on a CPU")
    model = build(**{"MODEL.VIT.NAME": model.backbone.timm_name, "MODEL.VIT.COMPILE": compiled}).to(
        gpu
    )
    with torch.autocast(gpu, dtype):
        losses = model.train()([mapped(seed=0), mapped(seed=1)])
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
