"""PanopticExtPMT: a frozen encoder, training of the decoder, outputs, weights and bad input."""

from __future__ import annotations

import math
from unittest.mock import patch

import pytest
import torch
from detectron2.utils.events import EventStorage

from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.engine.optimizer import build_optimizer
from panoptic_ext.errors import CheckpointError, ConfigError
from tests.modeling.pmt.published_names import published
from tests.tiny.eomt import DINOV2, DINOV3, build, tiny_cfg
from tests.tiny.mask_former import mapped, predict, train
from tests.tiny.model_inputs import IS_THING

pytest.importorskip("timm", reason="PMT's ViT is a timm model")

TINY = {"MODEL.META_ARCHITECTURE": "PanopticExtPMT", "MODEL.PMT.NUM_LAYERS": 2}
DROPPED = "MODEL.VIT.DROP_PATH_RATE"


def build_pmt(**changes):
    return build(**{**TINY, **changes})


@pytest.fixture(scope="module", params=[DINOV2, DINOV3])
def model(request):
    return build_pmt(**{"MODEL.VIT.NAME": request.param})


def encoder_state(model):
    return {n: v.clone() for n, v in model.state_dict().items() if n.startswith("backbone.")}


def test_gradient_reaches_the_whole_decoder_and_nothing_of_the_encoder(model):
    losses = train(model, [mapped(), mapped(seed=1)])
    kinds = ["loss_ce", "loss_dice", "loss_mask"]
    assert sorted(losses) == sorted(k + s for k in kinds for s in ("", "_0", "_1"))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not name.startswith("backbone.")), name
        assert (parameter.grad is None) == name.startswith("backbone."), name


def test_a_step_changes_the_decoder_and_not_the_encoder():
    cfg = tiny_cfg(**TINY, **{"SOLVER.WEIGHT_DECAY": 0.05, DROPPED: 0.5})
    model = build_pmt(**{DROPPED: 0.5})
    optimizer = build_optimizer(cfg, model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    encoder = encoder_state(model)
    train(model, [mapped(), mapped(seed=1)])
    optimizer.step()
    assert all(torch.equal(v, encoder[n]) for n, v in encoder_state(model).items())
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n in before if not n.startswith("backbone.")}


def test_the_encoder_stays_in_evaluation_mode_and_records_no_graph():
    model = build_pmt(**{DROPPED: 0.5, "MODEL.VIT.NAME": DINOV3, "MODEL.VIT.ROPE_RESCALE": 2.0})
    model.train()
    assert not any(module.training for module in model.backbone.modules())
    assert model.sem_seg_head.training
    images = torch.rand(1, 3, 64, 64)
    first, second = (model.encode(images) for _ in range(2))
    for a, b in zip([*first[0], first[2]], [*second[0], second[2]], strict=True):
        assert torch.equal(a, b) and not a.requires_grad
    model.eval()
    assert not any(module.training for module in model.modules())


def test_features_are_normalised_tokens_behind_their_blocks():
    model = build_pmt(**{"MODEL.PMT.FEATURE_BLOCKS": [1, 2]}).eval()
    images, vit = torch.rand(1, 3, 64, 96), model.backbone
    features, grid, rope = model.encode(images)
    assert grid == (4, 6) and rope is None
    for number, feature in zip((2, 3), features, strict=True):
        tokens, _, _ = vit.embed(images)
        with torch.no_grad():
            expected = vit.norm(vit.blocks(tokens, 0, number))
        torch.testing.assert_close(feature, expected)


@pytest.mark.parametrize(("depth", "blocks"), [(24, [5, 11, 17, 23]), (12, [2, 5, 8, 11])])
def test_features_come_from_the_published_blocks(depth, blocks):
    model = build_pmt(**{"MODEL.VIT.DEPTH": depth, "MODEL.VIT.EMBED_DIM": 8})
    assert list(model.feature_blocks) == blocks


def test_evaluation_is_one_pass_without_masks(model):
    head, masks = model.sem_seg_head, "panoptic_ext.modeling.eomt.head.attention_mask"
    with patch.object(head, "predict", wraps=head.predict) as calls, patch(masks) as masked:
        output = predict(model, [{**mapped((50, 70)), "height": 61, "width": 83}])[0]
    assert calls.call_count == 1 and not masked.called
    panoptic, segments = output["panoptic_seg"]
    assert panoptic.shape == (61, 83) and panoptic.dtype == torch.int32
    assert output["sem_seg"].shape == (len(IS_THING), 61, 83)
    assert all(s["isthing"] == IS_THING[s["category_id"]] for s in segments)


def test_one_encoder_serves_two_decoders():
    first, second = build_pmt().eval(), build_pmt(**{"MODEL.PMT.NUM_LAYERS": 3}).eval()
    second.backbone = first.backbone
    inputs = [mapped(), mapped(seed=1)]
    images = first.preprocess_image(inputs)
    features = first.encode(images.tensor)
    for model in (first, second):
        with torch.no_grad():
            outputs = model.sem_seg_head.decode(*features)
        shared = model.postprocess(outputs, images, inputs)[1]["sem_seg"]
        torch.testing.assert_close(shared, predict(model, inputs)[1]["sem_seg"])


def test_masks_vanish_with_the_iterations():
    model = build_pmt(**{"SOLVER.MAX_ITER": 60})  # "auto": (10, 20) and (40, 50)
    probabilities = {}
    for iteration in (0, 15, 45, 50):
        with EventStorage(iteration):
            probabilities[iteration] = model.train().mask_probabilities()
    half = pytest.approx(0.5**0.9)
    assert probabilities == {0: (1.0, 1.0), 15: (half, 1.0), 45: (0.0, half), 50: (0.0, 0.0)}
    assert model.eval().mask_probabilities() == ()


def test_no_object_and_more_objects_than_queries_train(model):
    for nums in ((0,), (20, 1)):
        inputs = [mapped(num=num, size=(32, 400), seed=i) for i, num in enumerate(nums)]
        assert all(math.isfinite(loss) for loss in train(model, inputs).values())


def test_one_image_gives_the_same_as_in_a_batch(model):
    inputs = [mapped(), mapped(seed=1)]
    both, alone = predict(model, inputs)[1], predict(model, inputs[1:])[0]
    torch.testing.assert_close(both["sem_seg"], alone["sem_seg"], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A published decoder, the encoder that it was trained on, and the model of both."""
    torch.manual_seed(1)
    model = build_pmt(**{"MODEL.VIT.NAME": DINOV3})
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand_like(value))
    folder = tmp_path_factory.mktemp("published")
    weights = published(model.sem_seg_head.state_dict())
    weights["network.decoder.attn_mask_probs"] = torch.ones(2)
    torch.save(weights, folder / "pytorch_model.bin")
    torch.save(model.backbone.net.state_dict(), folder / "encoder.pth")
    return folder, model


def test_a_published_decoder_loads_with_its_encoder(files):
    folder, expected = files
    encoder = {"MODEL.EOMT.ENCODER_WEIGHTS": str(folder / "encoder.pth")}
    model = build_pmt(**{"MODEL.VIT.NAME": DINOV3, **encoder})
    Checkpointer(model).load(str(folder / "pytorch_model.bin"), strict=True)
    assert expected.state_dict().keys() == model.state_dict().keys()
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value) or name.endswith("empty_weight"), name


def test_a_published_decoder_without_its_encoder_is_refused(files, tmp_path):
    missing = {"MODEL.EOMT.ENCODER_WEIGHTS": str(tmp_path / "none.pth")}
    model = build_pmt(**{"MODEL.VIT.NAME": DINOV3, **missing})
    with pytest.raises(CheckpointError, match=r"cannot be had(.|\n)*MODEL.EOMT.ENCODER_WEIGHTS"):
        Checkpointer(model).load(str(files[0] / "pytorch_model.bin"))


def test_a_checkpoint_of_ours_needs_no_encoder(files, tmp_path):
    _, expected = files
    torch.save({"model": expected.state_dict()}, tmp_path / "ours.pth")
    model = build_pmt(**{"MODEL.VIT.NAME": DINOV3})
    Checkpointer(model).load(str(tmp_path / "ours.pth"), strict=True)
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MODEL.PMT.NUM_LAYERS": 0}, "NUM_LAYERS is 0, expected at least 1"),
        ({"MODEL.PMT.FEATURE_BLOCKS": [2, 1]}, "ascending numbers from 0 to 3"),
        ({"MODEL.PMT.FEATURE_BLOCKS": [1, 4]}, "ascending numbers from 0 to 3"),
        ({"MODEL.BACKBONE.NAME": "build_resnet_backbone"}, "PanopticExtPMT needs a plain ViT"),
    ],
)
def test_bad_keys_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        build_pmt(**changes)
