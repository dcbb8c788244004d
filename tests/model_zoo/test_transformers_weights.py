"""Weights of transformers' Mask2Former give its logits, masks and panoptic maps here."""

from __future__ import annotations

import re
import sys
from contextlib import contextmanager

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.modeling import build_model
from torch import nn

from panoptic_ext import add_panoptic_ext_config
from panoptic_ext.errors import CheckpointError
from panoptic_ext.model_zoo.transformers_weights import (
    from_transformers,
    load_from_transformers,
    our_name,
    to_transformers,
)
from tests import ROOT
from tests.model_zoo.random_peer import randomise
from tests.postprocessing import naive_mask_inference as naive

transformers = pytest.importorskip(
    "transformers", minversion="4.49", reason="the peer (the hf extra) is not installed"
)
if not transformers.utils.is_torch_available():
    pytest.skip("this transformers needs a newer torch", allow_module_level=True)

CLASSES, THINGS = 9, (0, 2, 3, 5, 8)
NAME = "fake_transformers_weights"
STAGES = ["stage1", "stage2", "stage3", "stage4"]
# Lower than in use: random masks overlap too much, and random classes are too unsure.
OVERLAP, SCORE = 0.02, 0.3

RESNET = {"embedding_size": 32, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
SWIN = {"embed_dim": 32, "depths": [2, 2, 2, 2], "num_heads": [2, 2, 4, 4], "window_size": 5}
SMALL = {
    "feature_size": 64,
    "mask_feature_size": 64,
    "hidden_dim": 64,
    "encoder_feedforward_dim": 96,
    "encoder_layers": 2,
    "decoder_layers": 5,
    "num_attention_heads": 4,
    "dim_feedforward": 128,
    "num_queries": 20,
}


def peer(backbone, **keys):
    torch.manual_seed(0)
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone, num_labels=CLASSES, use_pretrained_backbone=False, **keys
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    randomise(model)
    return model


def resnet_peer():
    return peer(
        transformers.ResNetConfig(layer_type="basic", out_features=STAGES, **RESNET), **SMALL
    )


def swin_peer():
    return peer(transformers.SwinConfig(out_features=STAGES, **SWIN), **SMALL)


def small_keys(cfg):
    keys, head = cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD
    head.CONVS_DIM = head.MASK_DIM = keys.HIDDEN_DIM = 64
    head.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD = 96
    head.TRANSFORMER_ENC_LAYERS = 2
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = keys.NHEADS = 4
    keys.DEC_LAYERS, keys.DIM_FEEDFORWARD, keys.NUM_OBJECT_QUERIES = 5, 128, 20


def small_resnet(cfg):
    small_keys(cfg)
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 32


def small_swin(cfg):
    small_keys(cfg)
    cfg.MODEL.BACKBONE.NAME = "PanopticExtSwinTransformer"
    for key, value in SWIN.items():
        cfg.MODEL.SWIN[key.upper()] = value


@contextmanager
def ours(change):
    """Our model from a config changed by `change`, its data set's metadata registered."""
    MetadataCatalog.get(NAME).set(isthing=tuple(i in THINGS for i in range(CLASSES)))
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/common/mask2former/Base-Mask2Former.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = CLASSES
    cfg.MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD = OVERLAP
    cfg.MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD = SCORE
    cfg.DATASETS.TRAIN = (NAME,)
    change(cfg)
    try:
        yield build_model(cfg).eval()
    finally:
        MetadataCatalog.remove(NAME)


CASES = {"resnet": (resnet_peer, small_resnet), "swin": (swin_peer, small_swin)}


@pytest.fixture(params=sorted(CASES))
def pair(request):
    make, change = CASES[request.param]
    theirs = make()
    with ours(change) as model:
        load_from_transformers(model, theirs)
        yield theirs, model


@torch.no_grad()
def compare(theirs, model, image):
    """Logits and masks to 1e-4 of their scale, the panoptic map pixel for pixel.

    Returns:
        Number of segments, and pixels that differ because two queries tie in float32.
    """
    images = model.preprocess_image([{"image": image}])
    found = model.sem_seg_head(model.backbone(images.tensor), aux=False)
    expected = theirs(pixel_values=images.tensor)
    logits, masks = expected.class_queries_logits, expected.masks_queries_logits
    for got, wanted in ((found.pred_logits, logits), (found.dense_masks(), masks)):
        assert (got - wanted).abs().max() <= 1e-4 * max(1.0, wanted.abs().max())
    sizes = tuple(image.shape[-2:]), tuple(images.tensor.shape[-2:]), tuple(image.shape[-2:])
    resized = naive.resize(masks[0], *sizes)
    wanted, wanted_segments = naive.panoptic(logits[0], resized, set(THINGS), SCORE, OVERLAP)
    panoptic, segments = model([{"image": image}])[0]["panoptic_seg"]
    assert [s["category_id"] for s in segments] == [s["category_id"] for s in wanted_segments]
    differ = panoptic != wanted
    assert not (differ & ~ties(logits[0], resized)).any()
    return len(segments), int(differ.sum())


def ties(logits, masks):
    """(H, W): pixels where the two best queries, or a mask and 0.5, are too close to call."""
    scores, labels = logits.softmax(-1).max(-1)
    kept = (labels != CLASSES) & (scores > SCORE)
    values = scores[kept, None, None] * masks[kept].sigmoid()
    on_border = (masks[kept].abs() < 1e-4).any(0)
    if len(values) < 2:
        return on_border
    best = values.topk(2, dim=0).values
    return (best[0] - best[1] < 1e-5) | on_border


def photographs(shared_data):
    """Two of the facades, (3, H, W) uint8 each."""
    folder = shared_data / "facade" / "images"
    files = sorted(folder.rglob("*.jpg"))[:2]
    if not files:
        pytest.skip(f"no photographs: {folder} has no .jpg")
    images = [torch.from_numpy(read_image(str(file), "RGB").copy()) for file in files]
    return [image.permute(2, 0, 1) for image in images]


def shapes_image(size):
    """Rectangles of some colours on noise."""
    generator = torch.Generator().manual_seed(3)
    image = torch.randint(0, 90, (3, *size), generator=generator)
    for i in range(8):
        y, x = (int(torch.randint(0, side - 20, (), generator=generator)) for side in size)
        image[:, y : y + 25, x : x + 40] += torch.tensor([20 * i, 150 - 15 * i, 70])[:, None, None]
    return image.clamp(0, 255).to(torch.uint8)


def test_same_outputs(pair):
    segments, ties = compare(*pair, shapes_image((90, 128)))
    assert segments > 1 and ties <= 10


def test_weights_survive_the_round_trip(pair):
    theirs, model = pair
    state = theirs.state_dict()
    back = to_transformers(model.state_dict(), state)
    dropped = set(state) - set(back)
    assert all(our_name(name) is None for name in dropped)
    assert all(torch.equal(back[name], state[name]) for name in back)


def test_names_of_transformers_4():
    """Swin checkpoints on the hub have them."""
    state = swin_peer().state_dict()
    old = {}
    for name, tensor in state.items():
        name = name.replace("encoder.swin.", "encoder.").replace("mlp.fc2", "output.dense")
        name = name.replace("mlp.fc1", "intermediate.dense").replace("o_proj", "output.dense")
        name = name.replace("attention.relative_position_bias.", "attention.self.")
        if "blocks" in name:
            for part in ("query", "key", "value"):
                name = name.replace(f"attention.{part[0]}_proj", f"attention.self.{part}")
        old[name] = tensor
    assert any("attention.self.query.weight" in name for name in old)
    new, found = from_transformers(state), from_transformers(old)
    assert new.keys() == found.keys()
    assert all(torch.equal(new[name], found[name]) for name in new)


def test_unfitting_weights_are_named_and_change_nothing(pair):
    theirs, model = pair
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = dict(theirs.state_dict())
    state["class_predictor.bias"] = torch.zeros(3)
    del state["model.transformer_module.level_embed.weight"]
    with pytest.raises(
        CheckpointError, match=r"class_embed\.bias is \(3,\), expected \(10,\)"
    ) as e:
        load_from_transformers(model, state)
    assert "1 missing (sem_seg_head.predictor.level_embed.weight)" in str(e.value)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_unknown_and_incomplete_tensors():
    with pytest.raises(CheckpointError, match=r"'roi_heads\.weight' is none of"):
        our_name("roi_heads.weight")
    name = "model.transformer_module.decoder.layers.0.self_attn.{}_proj.weight"
    with pytest.raises(CheckpointError, match="lacks k and v"):
        from_transformers({name.format("q"): torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match="unknown tensor of the state dict"):
        to_transformers({}, [name.format("q")])


def test_unreadable_sources(monkeypatch, tmp_path):
    with pytest.raises(CheckpointError, match="cannot read"):
        load_from_transformers(nn.Linear(1, 1), str(tmp_path))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CheckpointError, match=re.escape("panoptic_ext[hf]")):
        load_from_transformers(nn.Linear(1, 1), str(tmp_path))


@pytest.fixture(scope="module")
def r50_pair():
    """The peer and ours in the published size."""
    theirs = peer(transformers.ResNetConfig(out_features=STAGES))
    with ours(lambda cfg: None) as model:
        load_from_transformers(model, theirs)
        yield theirs, model


@pytest.mark.slow
def test_r50_on_photographs(r50_pair, shared_data):
    for image in photographs(shared_data):
        segments, ties = compare(*r50_pair, image)
        assert segments > 1 and ties <= 50


@pytest.mark.slow
def test_r50_on_a_drawn_image(r50_pair):
    """The published size where there are no photographs."""
    segments, ties = compare(*r50_pair, shapes_image((150, 210)))
    assert segments > 1 and ties <= 50


def test_placed_queries_are_not_lost_in_silence():
    with pytest.raises(CheckpointError, match="no placed queries; set MODEL"):
        to_transformers({"sem_seg_head.predictor.place_head.0.weight": torch.zeros(1)}, [])
