"""The published model's numbers: `mask2former_reference`, made with its code and random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.layers import Conv2d
from detectron2.modeling import build_model

from panoptic_ext import add_panoptic_ext_config
from panoptic_ext.modeling import resolve_published_names
from panoptic_ext.modeling.backbone.folded_norm import FoldedConv2d
from tests import ROOT
from tests.mask2former_reference import needs_reference, reference_arrays, reference_json

PUBLISHED = ROOT / "tests/config/published_yaml" / "coco_panoptic_R50.yaml"
NAME = "fake_mask2former_reference"
THINGS = range(6)
NUM_CLASSES = 10
BACKBONES = {
    "resnet": [
        ("MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
        ("MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
        ("MODEL.RESNETS.WIDTH_PER_GROUP", 4),
    ],
    "swin": [
        ("MODEL.BACKBONE.NAME", "D2SwinTransformer"),
        ("MODEL.SWIN.EMBED_DIM", 12),
        ("MODEL.SWIN.DEPTHS", [2, 2, 2, 2]),
        ("MODEL.SWIN.NUM_HEADS", [1, 2, 3, 4]),
        ("MODEL.SWIN.WINDOW_SIZE", 4),
    ],
}
SMALL = [
    ("MODEL.DEVICE", "cpu"),
    ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", NUM_CLASSES),
    ("MODEL.SEM_SEG_HEAD.CONVS_DIM", 32),
    ("MODEL.SEM_SEG_HEAD.MASK_DIM", 32),
    ("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 2),
    ("MODEL.MASK_FORMER.HIDDEN_DIM", 32),
    ("MODEL.MASK_FORMER.NHEADS", 4),  # the pixel decoder's too
    ("MODEL.MASK_FORMER.DIM_FEEDFORWARD", 64),
    ("MODEL.MASK_FORMER.DEC_LAYERS", 4),
    ("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 12),
    ("MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", 0.0),
    ("MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", 0.3),
    ("TEST.DETECTIONS_PER_IMAGE", 10),
    ("DATASETS.TRAIN", (NAME,)),
]

pytestmark = needs_reference


def build(backbone):
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.merge_from_file(str(PUBLISHED))
    for key, value in [*SMALL, *BACKBONES[backbone]]:
        cfg.merge_from_list([key, value])
    resolve_published_names(cfg)
    return build_model(cfg).eval()


@pytest.fixture(scope="module", params=list(BACKBONES))
def reference(request):
    """The model with the reference weights, the reference values and the segments."""
    metadata = MetadataCatalog.get(NAME)
    metadata.set(isthing=tuple(i in THINGS for i in range(NUM_CLASSES)))
    model = build(request.param)
    report = model.load_state_dict(reference_arrays(f"{request.param}_weights"), strict=False)
    assert report.missing_keys == [] and report.unexpected_keys == []
    segments = reference_json(f"{request.param}_segments")["segments_info"]
    yield model, reference_arrays(f"{request.param}_activations"), segments
    MetadataCatalog.remove(NAME)


def image_of(values):
    return values["image"].permute(2, 0, 1)


def test_every_name_and_shape_of_the_state_dict(reference):
    model, _, _ = reference
    assert not any(n.startswith("pixel_") for n in model.state_dict())


def run(model, values, layout=torch.channels_last):
    """Every activation from the image on, by the reference's names."""
    with torch.no_grad():
        images = model.preprocess_image([{"image": image_of(values)}])
        found = dict(model.backbone(images.tensor.contiguous(memory_format=layout)))
        found |= run_head(model, found)
    return found


def run_head(model, features):
    with torch.no_grad():
        found = {}
        found["mask_features"], levels = model.sem_seg_head.pixel_decoder(features)
        found |= {f"ms{i}": level for i, level in enumerate(levels)}
        return found | run_predictor(model, found)


def run_predictor(model, given):
    with torch.no_grad():
        levels = [given[f"ms{i}"] for i in range(3)]
        fast, slow = (
            model.sem_seg_head.predictor(levels, given["mask_features"], aux=aux)
            for aux in (False, True)
        )
        found = {"pred_logits": slow.pred_logits, "pred_masks": slow.dense_masks()}
        found |= {"pred_logits without aux": fast.pred_logits}
        found |= {"pred_masks without aux": fast.dense_masks()}
        for i, aux in enumerate(slow.aux_outputs):
            found |= {f"aux{i}_logits": aux.pred_logits, f"aux{i}_masks": aux.dense_masks()}
    return found


def assert_all_near(found, values, tolerance):
    for name, value in found.items():
        expected = values[name.removesuffix(" without aux")]
        assert value.shape == expected.shape, name
        error = float((value - expected).abs().max() / expected.abs().max())
        assert error < tolerance, f"{name} differs by {error:.1e} of its largest value"


def test_each_stage_on_the_references_input(reference):
    model, values, _ = reference
    features = {name: values[name] for name in ("res2", "res3", "res4", "res5")}
    with torch.no_grad():
        images = model.preprocess_image([{"image": image_of(values)}])
        assert_all_near(dict(model.backbone(images.tensor)), values, 1e-5)
    assert_all_near(run_head(model, features), values, 1e-5)
    assert_all_near(run_predictor(model, values), values, 1e-5)


def test_all_activations_from_the_image_on(reference, monkeypatch):
    """Folded norms and channels_last sum in another order: that moves the backbone by 1e-6, which
    random sampling offsets amplify."""
    model, values, _ = reference
    found = run(model, values)
    assert len(found) == 4 + 4 + 2 + 2 + 6
    assert_all_near(found, values, 1e-4)
    monkeypatch.setattr(FoldedConv2d, "forward", Conv2d.forward)
    assert_all_near(run(model, values, torch.contiguous_format), values, 1e-5)


def test_outputs(reference):
    model, values, segments = reference
    with torch.no_grad():
        output = model([{"image": image_of(values), "height": 177, "width": 225}])[0]
    panoptic, info = output["panoptic_seg"]
    expected = values["panoptic_seg"]
    ties = int((panoptic != expected).sum())
    assert panoptic.dtype == torch.int32
    assert ties == 0, f"{ties} of {expected.numel()} pixels differ"
    assert [{k: s[k] for k in e} for s, e in zip(info, segments, strict=True)] == segments
    areas = [int((expected == s["id"]).sum()) for s in info]
    assert [s["area"] for s in info] == areas
    sem_seg = values["sem_seg"].float()  # kept in half precision
    torch.testing.assert_close(output["sem_seg"], sem_seg, rtol=1e-3, atol=1e-3)
    check_instances(output["instances"], values)


def check_instances(instances, values):
    """Scores, classes and masks, row by row in the order of the score."""
    order = torch.argsort(instances.scores, descending=True, stable=True)
    truth = torch.argsort(values["instance_scores"], descending=True, stable=True)
    scores = values["instance_scores"][truth]
    torch.testing.assert_close(instances.scores[order], scores, rtol=1e-5, atol=1e-6)
    assert instances.pred_classes[order].tolist() == values["instance_classes"][truth].tolist()
    masks = np.unpackbits(values["instance_masks"][truth].numpy(), axis=-1)[..., :225]
    found = instances.pred_masks[order].numpy() > 0
    assert (found != (masks > 0)).sum() == 0
    for mask, box in zip(found, instances.pred_boxes.tensor[order].tolist(), strict=True):
        ys, xs = mask.nonzero()
        tight = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else [0] * 4
        assert box == tight
