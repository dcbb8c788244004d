"""EoMT with the weights of transformers' models of its family gives their numbers.

The models are tiny and random, and of double precision where rounding could change the sign of a
mask. A naive EoMT, which has neither timm's blocks nor transformers', predicts the same.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("timm", reason="timm is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from timm.layers import resample_abs_pos_embed

from panoptic_ext.modeling.eomt.published_weights import from_published
from tests.modeling.meta_arch.eomt_peers import (
    FAMILIES,
    build_peer,
    fixed_points,
    predictions_of,
    weighted_losses,
)
from tests.modeling.meta_arch.naive_eomt import NaiveEomt
from tests.tiny.eomt import DINOV2, DINOV3, build
from tests.tiny.eomt_published import import_transformers
from tests.tiny.mask_former import mapped

VITS = {"dinov2": DINOV2, "dinov2_giant": "vit_giant_patch14_reg4_dinov2", "dinov3": DINOV3}
WIDTHS = {"dinov2": 32, "dinov2_giant": 48, "dinov3": 32}
LOSSES = {"loss_ce": "loss_cross_entropy", "loss_mask": "loss_mask", "loss_dice": "loss_dice"}


@pytest.fixture(params=FAMILIES)
def family(request):
    import_transformers(request.param == "dinov3")
    return request.param


def build_theirs(family):
    return build_peer(family, hidden_size=WIDTHS[family])


def build_ours(family, peer, **changes):
    """Our model with the peer's weights."""
    sizes = {
        "MODEL.VIT.EMBED_DIM": WIDTHS[family],
        "MODEL.EOMT.NUM_QUERIES": 7,
        "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 48,
    }
    ours = build(**{"MODEL.VIT.NAME": VITS[family], **sizes, **changes})
    weights = from_published(peer.state_dict())
    missing, unexpected = ours.load_state_dict(weights, strict=False)
    assert missing == ["criterion.empty_weight"] and not unexpected
    return ours.double().eval()


def inputs_of(*shapes):
    return [
        mapped(size, num=3 - number, seed=number)
        for number, size in enumerate(shapes or [(64, 64)])
    ]


def predictions(model, pixels):
    """As `predictions_of`."""
    outputs = model.outputs(pixels)
    every = [*outputs.aux_outputs, outputs]
    return [(output.pred_logits, output.dense_masks()) for output in every]


def assert_same(found, expected, tolerance=1e-5):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        for value, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(value, other, atol=tolerance, rtol=0)


@torch.no_grad()
def test_evaluation_gives_their_classes_and_masks_in_float32(family):
    peer = build_theirs(family)
    peer.attn_mask_probs.zero_()
    ours = build_ours(family, peer).float()
    pixels = ours.preprocess_image(inputs_of((64, 64), (64, 64))).tensor
    assert_same(predictions(ours, pixels), predictions_of(peer, pixels))


@torch.no_grad()
def test_an_oblong_image_gives_their_classes_and_masks(family):
    peer = build_theirs(family).double()
    ours = build_ours(family, peer)
    # transformers' model is made for squares. Its grid can be set, and what it adds to patches.
    peer.grid_size = grid = (2, 8)
    if "dinov2" in family:
        table = peer.embeddings.position_embeddings.weight
        table.copy_(resample_abs_pos_embed(table[None], grid, num_prefix_tokens=0)[0])
    peer.attn_mask_probs.zero_()
    pixels = ours.preprocess_image(inputs_of((32, 128))).tensor.double()
    assert_same(predictions(ours, pixels), predictions_of(peer, pixels))


@torch.no_grad()
def test_without_annealing_evaluation_is_masked_as_theirs_is(family):
    peer = build_theirs(family).double()
    ours = build_ours(family, peer, **{"MODEL.EOMT.ANNEALING": "off"})
    pixels = ours.preprocess_image(inputs_of()).tensor.double()
    masked = predictions_of(peer, pixels)[-1]
    assert_same(predictions(ours, pixels)[-1:], [masked])
    peer.attn_mask_probs.zero_()
    assert (predictions_of(peer, pixels)[-1][0] - masked[0]).abs().max() > 0.01


def test_training_gives_their_outputs_losses_and_gradients(family):
    # Both criteria compute in float32.
    peer = build_theirs(family).train()
    ours = build_ours(family, peer).float().train()
    inputs = inputs_of((64, 64), (64, 64))
    pixels = ours.preprocess_image(inputs).tensor
    assert_same(predictions(ours, pixels), predictions_of(peer, pixels))
    masks = [
        (x["panoptic_ids"] == torch.arange(1, len(x["segments"]) + 1)[:, None, None]).float()
        for x in inputs
    ]
    labels = [x["segments"].gt_classes for x in inputs]
    with fixed_points():
        losses = ours(inputs)
        total, by_depth = weighted_losses(peer, pixels, masks, labels)
    for depth, theirs in enumerate(by_depth):
        suffix = "" if depth == len(by_depth) - 1 else f"_{depth}"
        for name, their_name in LOSSES.items():
            assert losses[name + suffix].item() == pytest.approx(theirs[their_name], rel=1e-5)
    sum(losses.values()).backward()
    total.backward()
    theirs = from_published({name: p.grad for name, p in peer.named_parameters()})
    ours = {name: p.grad for name, p in ours.named_parameters()}
    assert set(theirs) == set(ours)
    for name, gradient in ours.items():
        scale = theirs[name].abs().max() + 1e-4
        torch.testing.assert_close(gradient / scale, theirs[name] / scale, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_the_naive_model_predicts_the_same_at_each_depth(family, masked):
    peer = build_theirs(family).double()
    ours = build_ours(family, peer, **{"MODEL.EOMT.MASKED_ATTENTION": masked}).train()
    pixels = ours.preprocess_image(inputs_of((64, 64), (64, 64))).tensor.double()
    found = predictions(ours, pixels)
    naive = NaiveEomt(
        ours.state_dict(), num_heads=2, num_blocks=3, norm_eps=1e-5 if family == "dinov3" else 1e-6
    )
    for image in range(2):
        of_image = [(classes[image], masks[image]) for classes, masks in found]
        assert_same(of_image, naive(pixels[image], masked=masked))
