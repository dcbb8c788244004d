"""UnifiedPanopticFPN: contiguous ids in inputs and outputs; model and merging are Detectron2's."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from panoptic_ext import add_panoptic_ext_config
from panoptic_ext.engine.optimizer import solver_groups
from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling import UnifiedPanopticFPN
from panoptic_ext.modeling.semantic_head import VoidSafeSemSegFPNHead
from tests import ROOT
from tests.fusion.naive_extents import check_extents
from tests.tiny.model_inputs import IS_THING, fake_input, fake_metadata

NAME = "fake_unified_panoptic"
THINGS = [i for i, thing in enumerate(IS_THING) if thing]


def tiny_cfg():
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/common/panoptic_fpn/Base-PanopticFPN-Small.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(IS_THING)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(THINGS)
    cfg.DATASETS.TRAIN = (NAME,)
    return cfg


@pytest.fixture(scope="module")
def model():
    fake_metadata(NAME)
    torch.manual_seed(0)
    yield build_model(tiny_cfg())
    MetadataCatalog.remove(NAME)


def test_the_pyramid_learns_at_the_rate_of_the_heads(model):
    solver = tiny_cfg().SOLVER
    solver.BACKBONE_MULTIPLIER = 0.5
    rate = {id(p): g["lr"] for g in solver_groups(solver, model) for p in g["params"]}
    of = {name: rate[id(p)] for name, p in model.named_parameters()}
    assert of["backbone.fpn_lateral2.weight"] == solver.BASE_LR
    assert of["backbone.bottom_up.stem.conv1.weight"] == solver.BASE_LR / 2


def losses_of(model, inputs):
    model.train()
    with EventStorage():
        return model(inputs)


def test_gradient_reaches_every_parameter(model):
    model.zero_grad()
    sum(losses_of(model, [fake_input(seed=i) for i in range(2)]).values()).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_the_box_head_is_trained_on_thing_indices_and_the_input_is_left_alone(model):
    seen = []
    inputs = [fake_input(num=3)]
    original = inputs[0]["instances"].gt_classes.clone()
    handle = model.roi_heads.register_forward_pre_hook(
        lambda _, args: seen.append(args[3][0].gt_classes)
    )
    losses_of(model, inputs)
    handle.remove()
    assert seen[0].tolist() == [0, 1, 2]
    assert torch.equal(inputs[0]["instances"].gt_classes, original)
    assert original.tolist() == THINGS


@pytest.mark.parametrize("num", [0, 2])
def test_all_void_and_empty_images_give_finite_losses(model, num):
    inputs = [fake_input(num=0, void=True), fake_input(num=num, void=True)]
    losses = losses_of(model, inputs)
    assert all(math.isfinite(v.detach()) for v in losses.values())
    assert losses["loss_sem_seg"].item() == 0


def test_one_image_gives_the_same_as_the_same_image_in_a_batch(model):
    model.eval()
    image = fake_input()
    with torch.no_grad():
        alone = model([image])[0]
        batched = model([fake_input(seed=5), image])[1]
    torch.testing.assert_close(alone["sem_seg"], batched["sem_seg"], rtol=1e-4, atol=1e-4)
    differing = alone["panoptic_seg"][0] != batched["panoptic_seg"][0]
    best = alone["sem_seg"].topk(2, dim=0).values
    assert not (differing & (best[0] - best[1] > 1e-3)).any()  # only where two classes tie


def test_it_gives_the_features_of_detectron2s_backbone(model):
    model.eval()
    theirs = build_backbone(tiny_cfg()).eval()
    theirs.load_state_dict(model.backbone.state_dict())
    with torch.no_grad():
        image = torch.randn(1, 3, 64, 96)
        ours, expected = model.backbone(image), theirs(image)
    assert type(theirs.bottom_up.stem.conv1) is not type(model.backbone.bottom_up.stem.conv1)
    for name, feature in expected.items():
        torch.testing.assert_close(ours[name], feature, rtol=1e-4, atol=1e-5)


def test_outputs_have_contiguous_ids_and_the_asked_size(model):
    model.eval()
    image = {**fake_input(), "height": 61, "width": 83}
    with torch.no_grad():
        output = model([image])[0]
    panoptic, segments = output["panoptic_seg"]
    assert panoptic.shape == (61, 83) and panoptic.dtype == torch.int32
    assert output["sem_seg"].shape == (len(IS_THING), 61, 83)
    assert set(output["instances"].pred_classes.tolist()) <= set(THINGS)
    for segment in segments:
        assert segment["isthing"] == IS_THING[segment["category_id"]]


def test_things_and_stuff_have_area_and_box(model):
    found = Instances((24, 32), pred_boxes=Boxes(torch.tensor([[2.0, 3, 12, 15], [20, 0, 32, 9]])))
    found.scores, found.pred_classes = torch.tensor([0.9, 0.8]), torch.tensor([0, 2])
    found.pred_masks = torch.ones(2, 1, 28, 28)
    sem_seg = torch.zeros(len(IS_THING), 24, 32)
    sem_seg[IS_THING.index(False)] = 1
    output = model.postprocess_one(found, sem_seg, {"height": 48, "width": 64})
    panoptic, segments = output["panoptic_seg"]
    assert [s["isthing"] for s in segments] == [True, True, False]
    check_extents(panoptic, segments)


def naive_combine(masks, scores, classes, labels, overlap, area, score_thresh):
    """Kirillov's merging, pixel sets and loops: {segment's pixels: (category, isthing)}."""
    free, segments = set(np.ndindex(labels.shape)), {}
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        pixels = {tuple(p) for p in np.argwhere(masks[i])}
        if scores[i] < score_thresh or not pixels:
            continue
        if len(pixels - free) / len(pixels) > overlap:
            continue
        segments[frozenset(pixels & free)] = (int(classes[i]), True)
        free -= pixels
    for category in sorted(set(labels.flatten().tolist())):
        pixels = {p for p in free if labels[p] == category}
        if not IS_THING[category] and len(pixels) >= max(area, 1):
            segments[frozenset(pixels)] = (category, False)
    segments.pop(frozenset(), None)
    return segments


def detectron2_merging(model, instances, sem_seg):
    """Detectron2's own merging of post-processed outputs, of which label 0 means "thing"."""
    label = torch.arange(1, len(IS_THING) + 1)
    label[THINGS] = 0
    panoptic, segments = combine_semantic_and_instance_outputs(
        instances,
        label[sem_seg.max(dim=0).indices],
        model.combine_overlap_thresh,
        model.combine_stuff_area_thresh,
        model.combine_instances_score_thresh,
    )
    for segment in segments:
        if not segment["isthing"]:
            segment["category_id"] -= 1
    return panoptic, segments


def raw_outputs(seed, num, size=(24, 30)):
    """Detections at network resolution, some beyond the image or empty, and semantic logits."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-4, 24, (num, 2))
    extent = rng.choice([0.0, 0.6, 3.0, 9.0, 20.0], (num, 2)) * rng.uniform(0.5, 1, (num, 2))
    found = Instances(size, pred_boxes=Boxes(torch.tensor(np.hstack([corner, corner + extent]))))
    found.pred_boxes.tensor = found.pred_boxes.tensor.float()
    found.scores = torch.tensor(rng.permutation(num) / 9 + 0.3)
    found.pred_classes = torch.tensor(rng.integers(0, len(THINGS), num), dtype=torch.int64)
    found.pred_mask_logits = torch.tensor(rng.normal(1, 3, (num, 1, 7, 7)), dtype=torch.float32)
    found.pred_masks = found.pred_mask_logits.sigmoid()
    coarse = torch.tensor(rng.normal(size=(1, len(IS_THING), 6, 8)), dtype=torch.float32)
    return found, nn.functional.interpolate(coarse, size=(32, 32))[0]


# The fusion takes the place of Detectron2's merging, and gives what it gave.
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num=st.integers(0, 8),
    area=st.sampled_from([0, 5, 30]),
    output=st.sampled_from([(24, 30), (31, 22), (50, 64)]),
    logits=st.booleans(),
)
def test_the_default_fusion_is_detectron2s_merging(model, seed, num, area, output, logits):
    model.combine_stuff_area_thresh = max(area, 1)
    model.fusion.rule = replace(model.fusion.rule, stuff_area_threshold=max(area, 1))
    found, sem_seg = raw_outputs(seed, num)
    if not logits:  # of a mask head that keeps none
        found.remove("pred_mask_logits")
    result = model.postprocess_one(found, sem_seg, {"height": output[0], "width": output[1]})
    panoptic, segments = result["panoptic_seg"]
    expected, expected_segments = detectron2_merging(model, result["instances"], result["sem_seg"])
    assert torch.equal(panoptic, expected) and panoptic.dtype == expected.dtype
    for segment, wanted in zip(segments, expected_segments, strict=True):
        assert {key: segment[key] for key in wanted} == wanted
        assert segment["area"] == int((expected == segment["id"]).sum())
    instances = result["instances"]
    naive = naive_combine(
        instances.pred_masks.numpy(),
        instances.scores,
        instances.pred_classes,
        result["sem_seg"].argmax(0).numpy(),
        0.5,
        area,
        0.5,
    )
    assert naive == {
        frozenset(tuple(p) for p in np.argwhere(panoptic.numpy() == s["id"])): (
            s["category_id"],
            s["isthing"],
        )
        for s in segments
    }


def test_the_thresholds_of_combine_rule_and_their_errors_name_them(model):
    cfg = tiny_cfg()
    combine = cfg.MODEL.PANOPTIC_FPN.COMBINE
    combine.STUFF_AREA_LIMIT, combine.INSTANCES_CONFIDENCE_THRESH = 77, 0.25
    for name in ("", "heuristic_detectron2", "hadamard", "spatial_ranking"):
        cfg.MODEL.PANOPTIC_FUSION.NAME = name
        fusion = UnifiedPanopticFPN.build_fusion(cfg, thing_ids=THINGS)
        assert (fusion.rule.stuff_area_threshold, fusion.rule.score_threshold) == (77, 0.25)
    combine.OVERLAP_THRESH = 50
    with pytest.raises(ConfigError, match=r"PANOPTIC_FPN\.COMBINE\.OVERLAP_THRESH is 50.*50% as"):
        UnifiedPanopticFPN.build_fusion(cfg, thing_ids=THINGS)


@pytest.mark.parametrize("name", ["hadamard", "upsnet", "heuristic_detectron2", "spatial_ranking"])
def test_every_fusion_works_and_the_weights_are_those_of_detectron2s_mask_head(model, name):
    cfg = tiny_cfg()
    cfg.MODEL.PANOPTIC_FUSION.NAME = name
    other = build_model(cfg)
    assert cfg.MODEL.ROI_MASK_HEAD.NAME == "MaskRCNNConvUpsampleHead"
    weights = model.state_dict()
    assert {n for n in other.state_dict() if not n.startswith("fusion.")} == set(weights)
    assert ("loss_spatial_ranking" in losses_of(other, [fake_input()])) == (
        name == "spatial_ranking"
    )
    found, sem_seg = raw_outputs(3, 6)
    panoptic, segments = other.eval().postprocess_one(found, sem_seg, {})["panoptic_seg"]
    assert panoptic.shape == (24, 30)
    assert set(panoptic.unique().tolist()) - {0} == {s["id"] for s in segments}


def test_an_unknown_fusion_is_an_error_with_the_nearest_name():
    cfg = tiny_cfg()
    cfg.MODEL.PANOPTIC_FUSION.NAME = "hueristic"
    with pytest.raises(ConfigError, match=r"NAME 'hueristic'.*did you mean 'heuristic'"):
        build_model(cfg)


def test_masks_that_a_fusion_cannot_use_are_errors():
    cfg = tiny_cfg()
    cfg.MODEL.MASK_ON = False
    with pytest.raises(ConfigError, match=r"mask head is missing; set MODEL\.MASK_ON True"):
        build_model(cfg)


def test_wrong_number_of_thing_classes_is_an_error_that_names_the_key(model):
    cfg = tiny_cfg()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    with pytest.raises(ConfigError, match=r"ROI_HEADS.NUM_CLASSES is 80.*has 3 thing classes"):
        build_model(cfg)


def test_a_data_set_of_stuff_alone_is_an_error():
    fake_metadata("fake_stuff_panoptic", (False, False))
    cfg = tiny_cfg()
    cfg.DATASETS.TRAIN = ("fake_stuff_panoptic",)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    try:
        with pytest.raises(ConfigError, match="stuff classes only"):
            build_model(cfg)
    finally:
        MetadataCatalog.remove("fake_stuff_panoptic")


def test_semantic_loss_equals_detectron2s_where_something_is_labelled(model):
    torch.manual_seed(1)
    logits, targets = torch.randn(2, 6, 8, 8), torch.randint(0, 6, (2, 32, 32))
    targets[:, :7] = 255
    ours = VoidSafeSemSegFPNHead.losses(model.sem_seg_head, logits, targets)
    theirs = super(VoidSafeSemSegFPNHead, model.sem_seg_head).losses(logits, targets)
    torch.testing.assert_close(ours["loss_sem_seg"], theirs["loss_sem_seg"])
