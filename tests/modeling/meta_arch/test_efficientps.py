"""EfficientPS: training, fusion before Detectron2's post-processing, fusions by key."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from panoptic_ext import add_panoptic_ext_config
from panoptic_ext.config.yaml_reader import merge_settings, read_file
from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.errors import CheckpointError, ConfigError
from panoptic_ext.modeling import EfficientPSSemSegHead, UnifiedPanopticFPN
from tests import ROOT
from tests.fusion.dense_fusion import check_consistent
from tests.fusion.naive_extents import check_extents
from tests.tiny.model_inputs import IS_THING, NARROW_RESNET, fake_input, fake_metadata

NAME = "fake_efficientps"
THINGS = [i for i, thing in enumerate(IS_THING) if thing]
FUSIONS = ["hadamard", "heuristic", "heuristic_detectron2", "upsnet"]


def tiny_cfg(fusion="hadamard", norm="", **keys):
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    base = ROOT / "configs/common/efficientps/Base-EfficientPS-Small.yaml"
    merge_settings(cfg, read_file(str(base)))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.TWO_WAY_FPN.OUT_CHANNELS = 32
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = cfg.MODEL.SEM_SEG_HEAD.DPC_DIM = 32
    cfg.MODEL.SEM_SEG_HEAD.HARD_PIXEL_FRACTION = 0.25
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(IS_THING)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(THINGS)
    cfg.MODEL.PANOPTIC_FUSION.NAME = fusion
    cfg.DATASETS.TRAIN = (NAME,)
    if norm:
        for part in ("TWO_WAY_FPN", "SEM_SEG_HEAD", "RPN", "ROI_MASK_HEAD", "RESNETS"):
            cfg.MODEL[part].NORM = norm
    resnet = {} if norm == "GN" else NARROW_RESNET  # GN has 32 groups of channels
    for key, value in {**resnet, **keys}.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


@pytest.fixture(scope="module", autouse=True)
def metadata():
    fake_metadata(NAME)
    yield
    MetadataCatalog.remove(NAME)


@pytest.fixture(scope="module")
def model(metadata):
    torch.manual_seed(0)
    return build_model(tiny_cfg())


def losses_of(model, inputs):
    model.train()
    with EventStorage():
        return model(inputs)


def detections(num=3, size=(64, 96), seed=0):
    """Random detections at network resolution, thing indices."""
    generator = torch.Generator().manual_seed(seed)
    found = Instances(size)
    corner = torch.rand(num, 2, generator=generator) * 40
    extent = 10 + torch.rand(num, 2, generator=generator) * 20
    found.pred_boxes = Boxes(torch.cat([corner, corner + extent], dim=1))
    found.scores = 0.6 + 0.4 * torch.rand(num, generator=generator)
    found.pred_classes = torch.arange(num) % len(THINGS)
    found.pred_mask_logits = 8 * torch.rand(num, 1, 28, 28, generator=generator) - 2
    found.pred_masks = found.pred_mask_logits.sigmoid()
    return found


def test_losses_are_the_six_of_the_paper_and_reach_every_parameter(model):
    model.zero_grad()
    losses = losses_of(model, [fake_input(seed=i) for i in range(2)])
    assert set(losses) == {
        "loss_sem_seg", "loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"
    }  # fmt: skip
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "FrozenBN", "GN"])
@pytest.mark.parametrize("num", [0, 2])
def test_all_void_empty_and_half_empty_batches_under_every_norm(norm, num):
    inputs = [fake_input(num=0, void=True), fake_input(num=num, void=True)]
    losses = losses_of(build_model(tiny_cfg(norm=norm)), inputs)
    sum(losses.values()).backward()
    assert all(math.isfinite(v.detach()) for v in losses.values())
    assert losses["loss_sem_seg"].item() == 0
    assert (losses["loss_mask"].item() > 0) == (num > 0)


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


def test_inference_on_folded_norms_equals_the_layers_as_they_are(model):
    model.eval()
    image = [fake_input()]
    with torch.no_grad():
        folded = model(image)[0]["sem_seg"]
    unfolded = model(image)[0]["sem_seg"].detach()  # with gradients nothing is folded
    torch.testing.assert_close(folded, unfolded, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [*FUSIONS, "spatial_ranking"])
def test_outputs_have_contiguous_ids_and_the_asked_size(name):
    torch.manual_seed(0)
    model = build_model(tiny_cfg(name, MODEL__PANOPTIC_FUSION__STUFF_AREA_THRESHOLD=0)).eval()
    inputs = {"height": 61, "width": 83}
    sem_seg = torch.randn(len(IS_THING), 64, 96)
    output = model.postprocess_one(detections(), sem_seg, inputs)
    panoptic, segments = output["panoptic_seg"]
    assert panoptic.shape == (61, 83) and panoptic.dtype == torch.int32
    assert output["sem_seg"].shape == (len(IS_THING), 61, 83)
    assert set(output["instances"].pred_classes.tolist()) <= set(THINGS)
    assert set(panoptic.unique().tolist()) - {0} == {s["id"] for s in segments}
    check_extents(panoptic, segments)
    assert any(s["isthing"] for s in segments) and not all(s["isthing"] for s in segments)
    for segment in segments:
        assert segment["isthing"] == IS_THING[segment["category_id"]]


@pytest.mark.parametrize("num", [0, 3])
def test_postprocessing_changes_no_input_and_gives_detectron2s_instances(model, num):
    found, inputs = detections(num), {"height": 100, "width": 200}
    before = {k: getattr(v, "tensor", v).clone() for k, v in found.get_fields().items()}
    sem_seg = torch.randn(len(IS_THING), 64, 96)
    given = sem_seg.clone()
    output = model.postprocess_one(found, sem_seg, inputs)["instances"]
    for name, value in found.get_fields().items():
        assert torch.equal(getattr(value, "tensor", value), before[name]), name
    assert torch.equal(sem_seg, given)
    expected = detector_postprocess(detections(num), 100, 200)
    torch.testing.assert_close(output.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(output.pred_masks, expected.pred_masks)
    assert output.pred_classes.tolist() == [THINGS[i] for i in expected.pred_classes]
    assert not output.has("pred_mask_logits")


def test_the_fusion_gets_logits_and_boxes_at_output_resolution(model, monkeypatch):
    seen = {}

    def spy(sem_seg, detections):
        seen.update(vars(detections), sem_seg=sem_seg)
        return torch.zeros(sem_seg.shape[1:], dtype=torch.int32), []

    monkeypatch.setattr(model.fusion, "forward", spy)
    found = detections(2)
    model.postprocess_one(found, torch.randn(6, 64, 96), {"height": 128, "width": 288})
    scale = torch.tensor([3.0, 2.0, 3.0, 2.0])
    torch.testing.assert_close(seen["boxes"], found.pred_boxes.tensor * scale)
    assert torch.equal(seen["mask_logits"], found.pred_mask_logits[:, 0])
    assert seen["classes"].tolist() == THINGS[:2]
    assert seen["sem_seg"].shape == (6, 128, 288)


def test_heuristic_fusion_is_that_of_panoptic_fpn():
    maps = []
    for arch, fusion in (("EfficientPS", "heuristic"), ("UnifiedPanopticFPN", "")):
        cfg = tiny_cfg(fusion, MODEL__PANOPTIC_FUSION__STUFF_AREA_THRESHOLD=64)
        cfg.MODEL.META_ARCHITECTURE = arch
        cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT = 64
        sem_seg = torch.randn(len(IS_THING), 64, 96, generator=torch.Generator().manual_seed(1))
        maps.append(build_model(cfg).postprocess_one(detections(5), sem_seg, {})["panoptic_seg"])
    assert torch.equal(maps[0][0], maps[1][0]) and maps[0][1] == maps[1][1]


@pytest.fixture(scope="module")
def ranking(metadata):
    torch.manual_seed(0)
    model = build_model(tiny_cfg("spatial_ranking"))
    # An untrained model is sure of nothing: let it detect all the same.
    model.roi_heads.box_predictor.test_score_thresh = 0.0
    model.fusion.rule = replace(model.fusion.rule, score_threshold=0.0)
    return model


def test_the_loss_of_a_fusion_that_learns_is_added_and_reaches_it_alone(ranking):
    inputs = [fake_input(seed=i) for i in range(2)]
    losses = losses_of(ranking, inputs)
    extra = {n: v for n, v in losses.items() if "ranking" in n}
    assert len(extra) == 1 and len(losses) == 7
    ranking.zero_grad()
    sum(extra.values()).backward()
    with_gradient = {n.split(".")[0] for n, p in ranking.named_parameters() if p.grad is not None}
    assert with_gradient == {"fusion"}
    assert all(p.grad is not None for p in ranking.fusion.parameters())


def test_a_fusion_that_learns_shares_images_and_features(ranking, monkeypatch):
    calls = []
    for owner, name in ((ranking, "preprocess_image"), (ranking.backbone, "forward")):
        function = getattr(owner, name)

        def counted(*args, name=name, function=function):
            calls.append(name)
            return function(*args)

        monkeypatch.setattr(owner, name, counted)
    losses_of(ranking, [fake_input()])
    assert calls == ["preprocess_image", "forward"]


def test_training_detections_are_those_above_the_threshold_of_the_fusion(ranking, monkeypatch):
    scores = []

    def spy(*, detections, image_size, sem_seg_target):
        scores.extend(each.scores for each in detections)
        return {}

    monkeypatch.setattr(ranking.fusion, "training_losses", spy)
    losses_of(ranking, [fake_input()])
    least = scores[0].median().item()
    monkeypatch.setattr(ranking.fusion, "rule", replace(ranking.fusion.rule, score_threshold=least))
    before = ranking.roi_heads.box_predictor.test_score_thresh
    losses_of(ranking, [fake_input()])
    assert 0 < len(scores[1]) < len(scores[0]) and (scores[1] > least).all()
    assert ranking.roi_heads.box_predictor.test_score_thresh == before


def test_the_heads_are_in_training_mode_after_it_and_no_hook_stays(ranking):
    losses_of(ranking, [fake_input()])
    assert all(m.training for m in ranking.roi_heads.modules())
    assert all(m.training for m in ranking.proposal_generator.modules())
    assert not ranking.backbone._forward_hooks


def test_weights_with_a_learned_fusion_load_with_another(ranking, model):
    weights = dict(ranking.state_dict())
    model.adapt_state_dict(weights, "")
    assert set(weights) == set(model.state_dict())
    strangers = {"something.else": torch.zeros(1)}
    ranking.adapt_state_dict(strangers, "")
    assert list(strangers) == ["something.else"]  # so that it is refused as a whole


# Evaluated, an untrained ranking would pass for a trained one.
def test_a_learned_fusion_wants_weights_trained_with_it(ranking, model, tmp_path, caplog):
    torch.save({"model": model.state_dict()}, tmp_path / "hadamard.pth")
    before = {name: value.clone() for name, value in ranking.fusion.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        Checkpointer(ranking).load(str(tmp_path / "hadamard.pth"), checkpointables=[])
    assert "trained without the fusion SpatialRankingFusion" in caplog.text
    assert "stay at their initial values" in caplog.text
    for name, value in ranking.fusion.state_dict().items():
        assert torch.equal(value, before[name])
    with pytest.raises(CheckpointError, match=r"SpatialRankingFusion, whose 18 tensors .* learnt"):
        Checkpointer(ranking).load(str(tmp_path / "hadamard.pth"), strict=True)


def check_mixed_precision(fusion, num, dtype, device):
    """One step of training on `num` instances an image; inference with as many detections."""
    torch.manual_seed(0)
    cfg = tiny_cfg(fusion, MODEL__DEVICE=device, TEST__DETECTIONS_PER_IMAGE=num)
    # An untrained model is sure of nothing: let it detect all the same.
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.PANOPTIC_FUSION.SCORE_THRESHOLD = 0.0
    cfg.MODEL.PANOPTIC_FUSION.UPSNET.SCORE_THRESHOLD = 0.0
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
    model = build_model(cfg)
    size = (64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    # It leaves out a step whose gradients overflow, which is seen below.
    scaler = torch.amp.GradScaler(device, init_scale=16.0, enabled=dtype == torch.float16)
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    with torch.autocast(device, dtype):
        losses = losses_of(model, [fake_input(num, size, seed=i) for i in range(2)])
    assert all(loss.isfinite() for loss in losses.values()), losses
    assert ("loss_spatial_ranking" in losses) == (fusion == "spatial_ranking")
    scaler.scale(sum(losses.values())).backward()
    scaler.step(optimizer)
    after = [p for p in model.parameters() if p.requires_grad]
    assert all(p.isfinite().all() for p in after)
    assert any(not torch.equal(p, old) for p, old in zip(after, before, strict=True))
    with torch.no_grad(), torch.autocast(device, dtype):
        output = model.eval()([fake_input(num, size)])[0]
    panoptic_seg, segments = output["panoptic_seg"]
    assert len(output["instances"]) == num and output["sem_seg"].isfinite().all()
    assert panoptic_seg.device.type == device and panoptic_seg.dtype == torch.int32
    check_extents(panoptic_seg, segments)
    boxless = [{k: v for k, v in segment.items() if k != "bbox"} for segment in segments]
    check_consistent(panoptic_seg.cpu(), boxless)
    assert all(s["instance_id"] < num for s in segments if s["isthing"])


@pytest.mark.parametrize(
    ("fusion", "num"),
    [*((name, 2) for name in FUSIONS), *(("spatial_ranking", n) for n in (0, 2)), ("hadamard", 0)],
)
def test_a_step_and_inference_under_bf16_autocast(fusion, num):
    check_mixed_precision(fusion, num, torch.bfloat16, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("num", [0, 2])
@pytest.mark.parametrize("fusion", [*FUSIONS, "spatial_ranking"])
def test_a_step_and_inference_under_fp16_autocast_on_cuda(fusion, num, gpu):
    if gpu == "cpu":
        pytest.skip("float16 takes minutes on a CPU")
    check_mixed_precision(fusion, num, torch.float16, gpu)


def test_a_mask_head_without_logits_is_an_error_that_names_the_key():
    with pytest.raises(ConfigError, match=r"MaskRCNNConvUpsampleHead; set .*SeparableMaskHead"):
        build_model(tiny_cfg(MODEL__ROI_MASK_HEAD__NAME="MaskRCNNConvUpsampleHead"))
    with pytest.raises(ConfigError, match=r"missing; set MODEL\.MASK_ON True"):
        build_model(tiny_cfg(MODEL__MASK_ON=False))


def test_detectron2s_mask_head_with_logits():
    model = build_model(tiny_cfg(MODEL__ROI_MASK_HEAD__NAME="MaskLogitsConvUpsampleHead")).eval()
    with torch.no_grad():
        assert model([fake_input()])[0]["panoptic_seg"][0].shape == (96, 128)


def test_the_semantic_head_in_panoptic_fpn():
    model = build_model(tiny_cfg(MODEL__META_ARCHITECTURE="UnifiedPanopticFPN"))
    assert type(model) is UnifiedPanopticFPN
    assert isinstance(model.sem_seg_head, EfficientPSSemSegHead)
    assert losses_of(model, [fake_input()])["loss_sem_seg"] > 0
    with torch.no_grad():
        assert model.eval()([fake_input()])[0]["sem_seg"].shape == (6, 96, 128)


def test_smooth_l1_and_weights_are_those_of_the_paper(model):
    assert model.proposal_generator.smooth_l1_beta == pytest.approx(1 / 9)
    assert model.roi_heads.box_predictor.smooth_l1_beta == 1.0
    weights = {
        *model.proposal_generator.loss_weight.values(),
        *model.roi_heads.box_predictor.loss_weight.values(),
        model.roi_heads.mask_head.loss_weight,
        model.sem_seg_head.loss_weight,
    }
    assert weights == {1.0}


@pytest.mark.slow
def test_it_overfits_one_image():
    torch.manual_seed(0)
    model = build_model(tiny_cfg(MODEL__PANOPTIC_FUSION__STUFF_AREA_THRESHOLD=0))
    image = fake_input(num=2)
    image["sem_seg"].fill_(0)
    image["sem_seg"][:, 64:] = 3
    for mask, label in zip(
        image["instances"].gt_masks.tensor, image["instances"].gt_classes, strict=True
    ):
        image["sem_seg"][mask] = label
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(60):
        loss = sum(losses_of(model, [image, image]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        panoptic, segments = model.eval()([image])[0]["panoptic_seg"]
    categories = {s["id"]: s["category_id"] for s in segments} | {0: -1}
    labels = torch.tensor([categories[i] for i in range(max(categories) + 1)])[panoptic.long()]
    assert (labels == image["sem_seg"]).float().mean() > 0.9
    assert sum(s["isthing"] for s in segments) == 2
