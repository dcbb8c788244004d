"""Every family of models on a GPU: mixed precision, the CPU's predictions, waits, evaluation."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from panoptic_ext.engine.precision import Precision
from panoptic_ext.engine.train_step import TrainStep
from panoptic_ext.prediction.outputs import panoptic_result
from tests.gpu_waits import waits_of
from tests.modeling.meta_arch import test_efficientps as efficientps
from tests.modeling.meta_arch import test_panoptic_fpn as panoptic_fpn
from tests.modeling.meta_arch.test_placed_mask_former import PLACED
from tests.tiny import eomt, mask_former
from tests.tiny.model_inputs import fake_input, fake_metadata

pytestmark = pytest.mark.gpu  # skipped without a device, see conftest.py

PMT = {"MODEL.META_ARCHITECTURE": "PanopticExtPMT", "MODEL.PMT.NUM_LAYERS": 2}
MODELS = {
    "mask2former": lambda: mask_former.build(**{"MODEL.MASK_FORMER.SEMANTIC_LOSS_WEIGHT": 1.0}),
    "placed": lambda: mask_former.build(**PLACED),
    "eomt": lambda: eomt.build(**{"MODEL.VIT.NAME": eomt.DINOV3}),
    "pmt": lambda: eomt.build(**PMT),
    "panoptic_fpn": lambda: build_model(panoptic_fpn.tiny_cfg()),
    "efficientps": lambda: build_model(efficientps.tiny_cfg("hadamard")),
}
OF_QUERIES = ("mask2former", "placed", "eomt", "pmt")


@pytest.fixture(autouse=True, scope="module")
def metadata():
    names = (efficientps.NAME, panoptic_fpn.NAME)
    for name in names:
        fake_metadata(name)
    yield
    for name in names:
        MetadataCatalog.remove(name)


@pytest.fixture(params=sorted(MODELS))
def named(request):
    if request.param in ("eomt", "pmt"):
        pytest.importorskip("timm", reason="plain ViTs are timm models")
    torch.manual_seed(0)
    return request.param, MODELS[request.param]()


def inputs_of(name):
    if name in OF_QUERIES:
        return [mask_former.mapped(seed=0), mask_former.mapped(seed=1)]
    return [fake_input(seed=i) for i in range(2)]


def losses_of(model, inputs):
    with EventStorage():
        return model.train()(inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_training_step_gives_finite_gradients_and_waits_seldom(named, dtype, gpu):
    name, model = named
    if dtype == torch.float16 and gpu == "cpu":
        pytest.skip("float16 is for CUDA")
    model, inputs = model.to(gpu), inputs_of(name)

    def step():
        model.zero_grad()
        with torch.autocast(gpu, dtype, enabled=dtype != torch.float32):
            losses = losses_of(model, inputs)
        sum(losses.values()).backward()
        return losses

    step()
    losses, waits = waits_of(step, gpu)
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values()), losses
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
    # One for the matcher, and one of timm's rotary positions; Detectron2 waits often by itself.
    assert waits <= (2 if name in OF_QUERIES else 100)


def test_predictions_are_those_of_the_cpu(named, gpu):
    name, model = named
    inputs = inputs_of(name)
    on_gpu = copy.deepcopy(model).to(gpu).eval()
    with torch.no_grad():
        expected = model.eval()(inputs)
        found = on_gpu(inputs)
    for ours, theirs in zip(found, expected, strict=True):
        ids, segments = panoptic_result(ours)
        assert ours["panoptic_seg"][0].device.type == gpu
        # Sums of another order decide otherwise where two scores nearly tie.
        assert (ids == theirs["panoptic_seg"][0]).float().mean() > 0.97
        assert abs(len(segments) - len(theirs["panoptic_seg"][1])) <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_predictions_in_half_precision_are_whole_maps(named, dtype, gpu):
    name, model = named
    if dtype == torch.float16 and gpu == "cpu":
        pytest.skip("float16 is for CUDA")
    model.to(gpu).eval()
    with torch.no_grad(), torch.autocast(gpu, dtype):
        outputs = model(inputs_of(name))
    for output in outputs:
        ids, segments = output["panoptic_seg"]
        assert {s["id"] for s in segments} == set(ids.unique().tolist()) - {0}


def test_losses_of_a_training_step_reach_the_log(gpu):
    """The check of the losses copies them while the backward pass runs."""
    model = MODELS["mask2former"]().to(gpu)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    step = TrainStep(model, [inputs_of("mask2former")] * 3, optimizer, None, Precision(gpu, None))
    with EventStorage() as storage:
        for _ in range(2):
            step.run_step()
            storage.step()
        latest = storage.latest()
    assert latest["total_loss"][0] == pytest.approx(
        sum(value for name, (value, _) in latest.items() if name.startswith("loss_"))
    )
