"""PanopticExtMaskFormer: training, its three outputs, class spaces, options and checkpoints."""

from __future__ import annotations

import math

import pytest
import torch

from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.errors import CheckpointError, ConfigError, DatasetError
from panoptic_ext.modeling.transformer_decoder import masked_transformer_decoder
from panoptic_ext.modeling.transformer_decoder.outputs import DecoderOutputs, Predictions
from tests.fusion.naive_extents import check_extents
from tests.postprocessing import naive_mask_inference as naive
from tests.tiny.mask_former import THINGS, build, mapped, predict, train
from tests.tiny.model_inputs import IS_THING


def test_gradient_reaches_every_parameter(model):
    losses = train(model, [mapped(), mapped(seed=1)])
    kinds = ["loss_ce", "loss_dice", "loss_mask"]
    assert sorted(losses) == sorted(k + s for k in kinds for s in ("", "_0", "_1", "_2"))
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_losses_carry_their_weights(model):
    weights = model.criterion.weight_dict
    inputs = [mapped()]
    model.train()
    torch.manual_seed(0)
    weighted = model(inputs)
    model.criterion.weight_dict = dict.fromkeys(weights, 1.0)
    torch.manual_seed(0)
    plain = model(inputs)
    model.criterion.weight_dict = weights
    expected = {"loss_ce": 2, "loss_mask": 5, "loss_dice": 5}
    for name, value in plain.items():
        factor = expected[name.rsplit("_", 1)[0] if name[-1].isdigit() else name]
        torch.testing.assert_close(weighted[name], value * factor)


def test_without_deep_supervision_the_last_output_alone_is_trained():
    losses = train(build(**{"MODEL.MASK_FORMER.DEEP_SUPERVISION": False}), [mapped()])
    assert sorted(losses) == ["loss_ce", "loss_dice", "loss_mask"]


@pytest.mark.parametrize("nums", [(0,), (0, 2), (20, 1), (375,)])
def test_no_object_and_more_objects_than_queries_train(model, nums):
    inputs = [mapped(num=num, size=(32, 400), seed=i) for i, num in enumerate(nums)]
    losses = train(model, inputs)
    assert all(math.isfinite(loss) for loss in losses.values())
    grads = [p.grad for p in model.parameters()]
    assert all(torch.isfinite(g).all() for g in grads)


def test_images_of_different_sizes_train_and_predict(model):
    inputs = [mapped(size=(50, 70)), mapped(size=(64, 33), seed=1)]
    assert all(math.isfinite(loss) for loss in train(model, inputs).values())
    for output, given in zip(predict(model, inputs), inputs, strict=True):
        assert output["panoptic_seg"][0].shape == given["image"].shape[1:]


def test_one_pixel(model):
    output = predict(model, [{"image": torch.zeros(3, 1, 1, dtype=torch.uint8)}])[0]
    assert output["panoptic_seg"][0].shape == (1, 1)
    assert output["sem_seg"].shape == (len(IS_THING), 1, 1)


def test_one_image_gives_the_same_as_in_a_batch(model):
    inputs = [mapped(), mapped(seed=1)]
    both, alone = predict(model, inputs)[1], predict(model, inputs[1:])[0]
    torch.testing.assert_close(both["sem_seg"], alone["sem_seg"], rtol=1e-4, atol=1e-4)
    assert torch.equal(both["panoptic_seg"][0], alone["panoptic_seg"][0])


def test_outputs_are_unified_and_at_the_asked_size(model):
    output = predict(model, [{**mapped(), "height": 61, "width": 83}])[0]
    panoptic, segments = output["panoptic_seg"]
    assert panoptic.shape == (61, 83) and panoptic.dtype == torch.int32
    assert output["sem_seg"].shape == (len(IS_THING), 61, 83)
    assert output["instances"].image_size == (61, 83)
    assert len(segments) > 0 and len(output["instances"]) > 0
    assert set(output["instances"].pred_classes.tolist()) <= set(THINGS)
    for segment in segments:
        assert set(segment) >= {"id", "isthing", "category_id", "score", "area", "bbox"}
        assert segment["isthing"] == IS_THING[segment["category_id"]]
    check_extents(panoptic, segments)


@pytest.mark.parametrize("on", ["PANOPTIC", "SEMANTIC", "INSTANCE"])
def test_each_output_is_given_where_it_is_on(on):
    switches = {
        f"MODEL.MASK_FORMER.TEST.{name}_ON": name == on
        for name in ("PANOPTIC", "SEMANTIC", "INSTANCE")
    }
    output = predict(build(**switches), [mapped()])[0]
    names = {"PANOPTIC": "panoptic_seg", "SEMANTIC": "sem_seg", "INSTANCE": "instances"}
    assert list(output) == [names[on]]


@pytest.mark.parametrize("first", [True, False])
def test_semantic_scores_before_or_after_resizing(first):
    key = "MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE"
    model = build("Base-Semantic", **{key: first})
    assert model.segmentation.wanted.resize_first is first
    assert predict(model, [{**mapped(), "height": 31, "width": 40}])[0]["sem_seg"].shape[1] == 31


def test_an_instance_model_counts_its_things_alone():
    model = build("Base-Instance", **{"MODEL.SEM_SEG_HEAD.NUM_CLASSES": len(THINGS)})
    seen = []
    model.criterion.register_forward_pre_hook(lambda _, args: seen.extend(args[1]))
    inputs = mapped(num=6)
    inputs["segments"].gt_classes = torch.arange(6)
    inputs["segments"].gt_isthing = torch.tensor(IS_THING)
    train(model, [inputs])
    assert seen[0].labels.tolist() == [0, 1, 2]
    output = predict(model, [inputs])[0]
    assert list(output) == ["instances"]
    assert set(output["instances"].pred_classes.tolist()) == set(THINGS)


def test_panoptic_output_of_things_alone_is_refused():
    with pytest.raises(ConfigError, match="its 3 thing classes only"):
        changes = {
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES": len(THINGS),
            "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": True,
        }
        build("Base-Instance", **changes)


def test_another_number_of_classes_is_refused():
    with pytest.raises(ConfigError, match=r"NUM_CLASSES is 5, but data set .* has 6 classes"):
        build(**{"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 5})


def test_another_input_of_the_decoder_is_refused():
    with pytest.raises(ConfigError, match="takes 'multi_scale_pixel_decoder' only"):
        build(**{"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "res5"})


def test_a_label_outside_the_classes_names_the_image(model):
    inputs = mapped(seed=7)
    inputs["segments"].gt_classes[0] = 9
    with pytest.raises(DatasetError, match=r"7\.png"):
        train(model, [inputs])


def test_gradient_checkpointing_changes_no_loss(monkeypatch):
    plain = build()
    recomputing = build(**{"MODEL.MASK_FORMER.GRADIENT_CHECKPOINTING": True})
    calls, losses = [], []
    checkpoint = masked_transformer_decoder.checkpoint
    monkeypatch.setattr(
        masked_transformer_decoder,
        "checkpoint",
        lambda *args, **kwargs: calls.append(args[1]) or checkpoint(*args, **kwargs),
    )
    for one in (plain, recomputing):
        torch.manual_seed(1)
        losses.append(train(one, [mapped()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert calls == [0, 1, 2]  # each layer of the second model, none of the first


def test_training_in_bfloat16(model):
    model.train()
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model([mapped(), mapped(seed=1)])
    sum(losses.values()).backward()
    assert all(math.isfinite(loss.item()) for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inference_in_low_precision_is_close(model, dtype):
    expected = predict(model, [mapped()])[0]["sem_seg"]
    with torch.autocast("cpu", dtype=dtype):
        found = predict(model, [mapped()])[0]["sem_seg"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.2, atol=0.1)


def test_compiled_parts_give_the_same(monkeypatch):
    """Traced and differentiated as for real; writing and building C++ takes minutes on a CPU."""
    seen = []
    original = torch.nn.Module.compile

    def compiled(module):
        seen.append(type(module).__name__)
        original(module, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    small = {"MODEL.MASK_FORMER.DEC_LAYERS": 2}
    plain, model = build(**small), build(**small, **{"MODEL.MASK_FORMER.COMPILE": True})
    assert seen == ["MSDeformAttnPixelDecoder", "MultiScaleMaskedTransformerDecoder"]
    assert list(model.state_dict()) == list(plain.state_dict())
    expected, found = (predict(one, [mapped()])[0]["sem_seg"] for one in (plain, model))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert all(math.isfinite(loss) for loss in train(model, [mapped()]).values())


def test_weights_with_and_without_the_classifier_of_training(model, tmp_path):
    learning = build(**{"MODEL.MASK_FORMER.SEMANTIC_LOSS_WEIGHT": 1.0})
    for source, target in ((model, learning), (learning, build())):
        before = learning.semantic_classifier.weight.clone()
        Checkpointer(target).load(saved(tmp_path, {"model": changed_copy(source)}), strict=True)
        weight = source.sem_seg_head.predictor.class_embed.weight + 1
        assert torch.equal(target.sem_seg_head.predictor.class_embed.weight, weight)
        assert torch.equal(learning.semantic_classifier.weight, before)


def unbatched(model, image, padded_size):
    """Semantic scores of one image, padded by hand with zeros after normalization; (K, h, w)."""
    size = tuple(image.shape[1:])
    padded = torch.zeros(1, 3, *padded_size)
    padded[0, :, : size[0], : size[1]] = (image - model.pixel_mean) / model.pixel_std
    model.eval()
    with torch.no_grad():
        outputs = model.sem_seg_head(model.backbone(padded), aux=False)
    masks = naive.resize(outputs.dense_masks()[0], size, padded_size, size)
    return naive.semantic(outputs.pred_logits[0], masks)


def test_padding_is_to_the_largest_of_the_batch(model):
    """Scores equal those of the same padded input, and not those of another amount of padding.

    50 x 70 alone is padded to 64 x 96; beside 64 x 160 to 64 x 160. To the same size, padding by
    the batch, by hand with zeros behind the normalization, or by hand with the mean before it, and
    with or without a neighbour, must give the same. The two sizes must not: convolutions and
    attention see the zeros, as in the published model, so that the scores move a little (3% of
    the largest on average with these random weights).
    """
    small, large = mapped((50, 70)), mapped((64, 160), seed=1)
    alone = predict(model, [small])[0]["sem_seg"]
    in_batch = predict(model, [small, large])[0]["sem_seg"]
    padded = model.pixel_mean.expand(3, 64, 160).clone()
    padded[:, :50, :70] = small["image"]
    by_hand = predict(model, [{"image": padded, "height": 64, "width": 160}])[0]["sem_seg"]
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(alone, unbatched(model, small["image"], (64, 96)), **close)
    torch.testing.assert_close(in_batch, unbatched(model, small["image"], (64, 160)), **close)
    torch.testing.assert_close(by_hand[:, :50, :70], in_batch, **close)
    moved = (in_batch - alone).abs()
    assert moved.max() > 1e-3
    assert moved.mean() < 0.05 * alone.max()


class PlainDecoder(masked_transformer_decoder.MultiScaleMaskedTransformerDecoder):
    """A user's decoder that returns dense masks instead of `QueryMasks`."""

    def forward(self, multi_scale_features, mask_features, *, aux):
        outputs = super().forward(multi_scale_features, mask_features, aux=aux)
        aux_outputs = (Predictions(o.pred_logits, o.dense_masks()) for o in outputs.aux_outputs)
        return DecoderOutputs(outputs.pred_logits, outputs.dense_masks(), tuple(aux_outputs))


class PublishedDecoder(PlainDecoder):
    """A decoder that returns a dict, as the published code does."""

    def forward(self, multi_scale_features, mask_features, *, aux):
        outputs = super().forward(multi_scale_features, mask_features, aux=aux)
        final, *layers = (
            {"pred_logits": o.pred_logits, "pred_masks": o.pred_masks} for o in outputs.predictions
        )
        return {**final, "aux_outputs": layers}


@pytest.mark.parametrize("decoder", [PlainDecoder, PublishedDecoder])
def test_a_decoder_that_gives_masks_trains_to_the_same_losses(model, decoder):
    plain = build()
    plain.sem_seg_head.predictor.__class__ = decoder
    found = []
    for one in (model, plain):
        torch.manual_seed(3)
        found.append(train(one, [mapped(), mapped(seed=1)]))
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_few_layers_leave_parameters_unused(model):
    assert not model.find_unused_parameters
    assert build(**{"MODEL.MASK_FORMER.DEC_LAYERS": 2}).find_unused_parameters


def test_prefixes_of_the_state_dict(model):
    names = set(model.state_dict())
    assert "criterion.empty_weight" in names
    prefixes = {n.split(".")[0] for n in names}
    assert prefixes == {"backbone", "sem_seg_head", "criterion"}
    parts = {n.split(".")[1] for n in names if n.startswith("sem_seg_head.")}
    assert parts == {"pixel_decoder", "predictor"}


def saved(tmp_path, weights):
    path = tmp_path / "weights.pth"
    torch.save(weights, path)
    return str(path)


def changed_copy(model):
    return {n: v + 1 if v.is_floating_point() else v for n, v in model.state_dict().items()}


def test_a_checkpoint_without_metadata_loads_whole(model, tmp_path):
    weights, target = changed_copy(model), build()
    Checkpointer(target).load(saved(tmp_path, {"model": weights}), strict=True)
    assert all(torch.equal(v, weights[n]) for n, v in target.state_dict().items())


def test_an_old_checkpoint_loads_whole(model, tmp_path):
    weights, target = changed_copy(model), build()
    old = {n.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): v for n, v in weights.items()}
    old["sem_seg_head.predictor.static_query.weight"] = old.pop(
        "sem_seg_head.predictor.query_feat.weight"
    )
    assert len(old) == len(weights) and set(old) != set(weights)
    Checkpointer(target).load(saved(tmp_path, {"model": old}), strict=True)
    assert all(torch.equal(v, weights[n]) for n, v in target.state_dict().items())


def test_an_old_checkpoint_of_other_sizes_gets_the_report(model, tmp_path):
    weights = {
        n.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): v
        for n, v in model.state_dict().items()
    }
    weights["sem_seg_head.mask_features.weight"] = torch.zeros(7, 64, 1, 1)
    weights["sem_seg_head.predictor.static_query.weight"] = torch.zeros(5, 32)
    del weights["sem_seg_head.predictor.query_feat.weight"]
    with pytest.raises(
        CheckpointError,
        match=r"0 missing, 2 of other shape, 0 unexpected.*pixel_decoder.mask_features.weight is "
        r"\(7, 64, 1, 1\), the model's is \(32, 64, 1, 1\)",
    ):
        Checkpointer(build()).load(saved(tmp_path, {"model": weights}), strict=True)


def test_weights_of_another_model_are_refused_with_a_report(model, tmp_path):
    weights = {n: v for n, v in model.state_dict().items() if "predictor" not in n}
    with pytest.raises(CheckpointError, match="missing"):
        Checkpointer(build()).load(saved(tmp_path, {"model": weights}), strict=True)
    with pytest.raises(CheckpointError, match="do not fit the model"):
        Checkpointer(build()).load(saved(tmp_path, {"model": {"x.weight": torch.zeros(2)}}))
    learning = build(**{"MODEL.MASK_FORMER.SEMANTIC_LOSS_WEIGHT": 1.0})
    with pytest.raises(CheckpointError, match="do not fit the model"):
        Checkpointer(learning).load(saved(tmp_path, {"model": {"x.weight": torch.zeros(2)}}))
