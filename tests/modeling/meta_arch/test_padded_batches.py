"""INPUT.PAD_VALUE and PAD_TO_SQUARE in each meta-architecture, and EoMT's way back to the image."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from panoptic_ext import add_panoptic_ext_config
from tests import ROOT
from tests.tiny import eomt, mask_former
from tests.tiny.mask_former import NAME, THINGS, predict
from tests.tiny.model_inputs import IS_THING, fake_input

EOMT_INPUT = {
    "INPUT.PAD_VALUE": "black",
    "INPUT.IMAGE_SIZE": 64,
    "INPUT.TEST_RESIZE": "longest_side",
    "INPUT.PAD_TO_SQUARE": True,
}


def panoptic_fpn(**changes):
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/common/panoptic_fpn/Base-PanopticFPN-Small.yaml"))
    cfg.DATASETS.TRAIN, cfg.MODEL.DEVICE = (NAME,), "cpu"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(THINGS)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(IS_THING)
    for key, value in changes.items():
        cfg.merge_from_list([key, value])
    return build_model(cfg)


BUILDERS = {"mask2former": mask_former.build, "eomt": eomt.build, "panoptic_fpn": panoptic_fpn}


@pytest.fixture(scope="module", params=BUILDERS)
def models(request):
    """The same model by default and with EoMT's keys."""
    if request.param == "eomt":
        pytest.importorskip("timm", reason="timm is not installed")
    return BUILDERS[request.param](), BUILDERS[request.param](**EOMT_INPUT)


def pictures(*sizes):
    generator = torch.Generator().manual_seed(0)
    return [{"image": torch.randint(0, 256, (3, *s), generator=generator)} for s in sizes]


def test_black_squares_in_testing_and_black_batches_in_training(models):
    plain, black = models
    inputs = pictures((20, 60), (17, 20))
    expected = plain.eval().preprocess_image(inputs).tensor
    found = black.eval().preprocess_image(inputs)
    assert found.tensor.shape == (2, 3, 64, 64) and found.image_sizes == [(20, 60), (17, 20)]
    assert expected.shape[2:] == (32, 64)
    value = -black.pixel_mean / black.pixel_std
    for i, (height, width) in enumerate(found.image_sizes):
        assert torch.equal(found.tensor[i, :, :height, :width], expected[i, :, :height, :width])
        assert (found.tensor[i, :, height:] == value).all()
        assert (found.tensor[i, :, :, width:] == value).all()
        assert not expected[i, :, height:].any() and not expected[i, :, :, width:].any()
    assert black.train().preprocess_image(inputs).tensor.shape == expected.shape


def test_a_square_without_padding_is_the_same(models):
    plain, black = models
    black.load_state_dict(plain.state_dict())
    inputs = pictures((64, 64))
    found, expected = predict(black, inputs)[0], predict(plain, inputs)[0]
    assert torch.equal(found["sem_seg"], expected["sem_seg"])


def test_masks_go_to_the_square_then_to_the_image_then_to_the_output():
    """EoMT's inference written out: logits to S x S, cropped, and resized, each bilinear."""
    pytest.importorskip("timm", reason="timm is not installed")
    model = eomt.build(**EOMT_INPUT).eval()
    inputs = pictures((40, 64))
    inputs[0].update(height=53, width=85)
    with torch.no_grad():
        found = model(inputs)[0]["sem_seg"]
        outputs = model.outputs(model.preprocess_image(inputs).tensor)
        masks = F.interpolate(outputs.dense_masks(), (64, 64), mode="bilinear")[:, :, :40, :64]
        masks = F.interpolate(masks, (53, 85), mode="bilinear")[0].sigmoid()
        classes = outputs.pred_logits[0].softmax(-1)[:, :-1]
    expected = torch.einsum("qc,qhw->chw", classes, masks)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mask2former", "panoptic_fpn"])
def test_the_memory_layout_changes_no_result(name):
    """MODEL.CHANNELS_LAST: on a CPU by default, and the same losses to rounding."""
    inputs = [mask_former.mapped() if name == "mask2former" else fake_input()]
    losses, layouts = {}, {}
    weights = BUILDERS[name]().state_dict()
    for key in (None, True, False):
        model = BUILDERS[name](**{"MODEL.CHANNELS_LAST": key}).train()
        model.load_state_dict(weights)
        images = model.preprocess_image(inputs).tensor
        layouts[key] = images.is_contiguous(memory_format=torch.channels_last)
        torch.manual_seed(0)
        with EventStorage():
            losses[key] = model(inputs)
    assert layouts == {None: True, True: True, False: False}
    for key, loss in losses[False].items():
        torch.testing.assert_close(losses[True][key], loss, rtol=1e-3, atol=1e-4)
