"""How often the host waits for a GPU in a step of each model, on a pretended one.

The numbers are budgets. A model that waits more often than before has a new `.item()`, boolean
index or copy of pageable memory in a path that CUDA runs; the failure names its line.
"""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from panoptic_ext.engine.train_step import TrainStep
from panoptic_ext.engine.weight_average import WeightAverage
from tests.modeling.meta_arch import test_efficientps as efficientps
from tests.modeling.meta_arch.test_placed_mask_former import PLACED
from tests.pretended_cuda import DeviceTensor, PretendedCuda, to_pretended
from tests.tiny import eomt, mask_former
from tests.tiny.model_inputs import fake_input, fake_metadata

# The Triton kernels are no functions of torch; grid_sample takes their place.
SAMPLED = {"MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_BACKEND": "reference"}
ALL_OUTPUTS = {
    "MODEL.MASK_FORMER.TEST.INSTANCE_ON": True,
    "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": True,
}
PMT = {"MODEL.META_ARCHITECTURE": "PanopticExtPMT", "MODEL.PMT.NUM_LAYERS": 2}
QUERY_MODELS = {
    "mask2former": lambda: mask_former.build(
        **SAMPLED,
        **ALL_OUTPUTS,
        **{
            "MODEL.MASK_FORMER.BOX_SAMPLE_RATIO": 0.5,
            "MODEL.MASK_FORMER.SEMANTIC_LOSS_WEIGHT": 1.0,
        },
    ),
    "placed": lambda: mask_former.build(**SAMPLED, **PLACED),
    "eomt": lambda: eomt.build(**{"MODEL.VIT.NAME": eomt.DINOV3}),
    "pmt": lambda: eomt.build(**PMT),
}
REGION_MODELS = {
    "hadamard": lambda: build_model(efficientps.tiny_cfg("hadamard")),
    "spatial_ranking": lambda: build_model(efficientps.tiny_cfg("spatial_ranking")),
}
# Two images are predicted: counts of the matcher and of mask inference are for the batch, and two
# for the boxes of each image's segments. `placed` computes image after image.
PREDICTING = {"mask2former": 6, "eomt": 6, "pmt": 6, "placed": 11}
# Own lines for two images: the selection of boxes, the fusion twice, and the segments' boxes twice.
FUSING = {"hadamard": 10, "spatial_ranking": 16}


@pytest.fixture(autouse=True, scope="module")
def metadata():
    fake_metadata(efficientps.NAME)
    yield
    MetadataCatalog.remove(efficientps.NAME)


def losses_of(model, inputs):
    torch.manual_seed(0)
    with EventStorage():
        losses = model(inputs)
    sum(losses.values()).backward()
    return losses


def predictions_of(model, inputs):
    with torch.no_grad():
        return model(inputs)


def on_device(model, inputs, run):
    """The result and what it waited for."""
    with PretendedCuda() as device:
        result = run(model, inputs)
    return result, device


def mapped_batch():
    return [mask_former.mapped(seed=0), mask_former.mapped(seed=1)]


@pytest.mark.parametrize("name", sorted(QUERY_MODELS))
def test_a_model_of_queries_waits_once_a_training_step(name):
    if name in ("eomt", "pmt"):
        pytest.importorskip("timm", reason="plain ViTs are timm models")
    model = QUERY_MODELS[name]()
    plain = copy.deepcopy(model)
    to_pretended(model)
    predicted, device = on_device(model.eval(), mapped_batch(), predictions_of)
    assert device.own_waits() == PREDICTING[name], device.report()
    check_equal(predicted, predictions_of(plain.eval(), mapped_batch()))
    losses, device = on_device(model.train(), mapped_batch(), losses_of)
    assert device.own_waits() == 1, device.report()
    # timm computes rotary positions on the CPU, once for a size or, if they vary, in every step.
    others = [at for _, at in device.waits if not at.startswith("panoptic_ext/")]
    assert all(at.startswith("timm/") for at in others) and len(others) <= 1, device.report()
    expected = losses_of(plain.train(), mapped_batch())
    assert losses.keys() == expected.keys()
    for loss, theirs in zip(losses.values(), expected.values(), strict=True):
        assert isinstance(loss, DeviceTensor)
        torch.testing.assert_close(loss.as_subclass(torch.Tensor), theirs, rtol=1e-3, atol=1e-5)


def test_a_whole_step_with_its_log_and_averages_waits_once_and_for_one_event():
    """The losses are copied while the backward pass runs, and the host waits for that copy."""
    model = to_pretended(QUERY_MODELS["placed"]())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    average = WeightAverage(model, decay=0.99)
    step = TrainStep(model, [mapped_batch()], optimizer)
    with EventStorage() as storage, PretendedCuda() as device:
        step.run_step()
        average.update()
    assert sum(device.waits.values()) == device.event_waits == 1, device.report()
    assert storage.latest()["total_loss"][0] > 0 and average.updates == 1


@pytest.mark.parametrize("name", sorted(REGION_MODELS))
def test_models_of_regions_wait_for_detectron2_alone(name):
    """Detectron2's proposals and RoI heads wait some fifty times a step, our own code never."""
    torch.manual_seed(0)
    model = REGION_MODELS[name]()
    plain = copy.deepcopy(model)
    to_pretended(model)
    inputs = [fake_input(seed=i) for i in range(2)]
    predicted, device = on_device(model.eval(), inputs, predictions_of)
    assert device.own_waits() == FUSING[name], device.report()
    check_equal(predicted, predictions_of(plain.eval(), inputs))
    losses, device = on_device(model.train(), inputs, losses_of)
    # With a fusion that learns: the selection of each image's detections.
    assert device.own_waits() == 2 * (name == "spatial_ranking"), device.report()
    assert all(isinstance(loss, DeviceTensor) for loss in losses.values())


def check_equal(found, expected):
    """Panoptic maps of the pretended device are the CPU's, but for rounding at edges."""
    for ours, theirs in zip(found, expected, strict=True):
        assert isinstance(ours["panoptic_seg"][0], DeviceTensor)
        same = ours["panoptic_seg"][0].as_subclass(torch.Tensor) == theirs["panoptic_seg"][0]
        assert same.float().mean() > 0.99
        assert len(ours["panoptic_seg"][1]) == len(theirs["panoptic_seg"][1])
