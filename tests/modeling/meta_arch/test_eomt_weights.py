"""PanopticExtEoMT loads the four published forms, and gives transformers' logits."""

import logging

import pytest
import torch

from panoptic_ext.engine.checkpoint.checkpointer import Checkpointer
from panoptic_ext.errors import CheckpointError
from tests.tiny import eomt_published as tiny
from tests.tiny.eomt import DINOV2, DINOV3, build

pytest.importorskip("timm", reason="EoMT's ViT is a timm model")
pytest.importorskip("transformers", reason="the weights are of transformers' models")
safetensors = pytest.importorskip("safetensors.torch", reason="transformers writes safetensors")

IMAGENET = {
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
}
SIZES = {"MODEL.EOMT.NUM_QUERIES": tiny.QUERIES, "MODEL.EOMT.NUM_BLOCKS": tiny.BLOCKS, **IMAGENET}


@pytest.fixture(scope="module")
def classes():
    return build(**SIZES).sem_seg_head.class_head.out_features - 1


@pytest.fixture(scope="module")
def theirs(classes):
    return tiny.Lazy(lambda v: tiny.transformers_model(v == "v3", num_labels=classes))


@pytest.fixture(scope="module")
def files(theirs, tmp_path_factory):
    """A file of each form, and the encoder "base" of bin_v3."""
    folder = tmp_path_factory.mktemp("published")
    base = tiny.encoder_of_dinov3().state_dict()

    def write(name):
        if name == "base":
            weights = base
        else:
            weights = tiny.weights_of(name, theirs[name[-2:]].state_dict(), base)
        if name in ("base", "transformers_v3"):
            path = folder / f"{name}.safetensors"
            safetensors.save_file(weights, path)
        else:
            path = folder / f"{name}.bin"
            torch.save(weights, path)
        return str(path)

    return tiny.Lazy(write)


def eomt(version, **changes):
    name = DINOV2 if version == "v2" else DINOV3
    return build(**{"MODEL.VIT.NAME": name, **SIZES, **changes}).eval()


def load(model, path, *, strict=True):
    Checkpointer(model).load(path, strict=strict)
    return model


@pytest.mark.parametrize("form", tiny.FORMS)
def test_every_form_gives_transformers_logits(theirs, files, form):
    version = form[-2:]
    model = eomt(version, **{"MODEL.EOMT.ENCODER_WEIGHTS": files["base"]})
    load(model, files[form])
    images = torch.randn(2, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
    with torch.no_grad():
        found, expected = model.outputs(images), theirs[version](images)
    torch.testing.assert_close(
        found.pred_logits, expected.class_queries_logits, rtol=1e-5, atol=2e-5
    )
    torch.testing.assert_close(
        found.dense_masks(), expected.masks_queries_logits, rtol=1e-5, atol=2e-5
    )


def test_plain_load_state_dict_takes_published_names(files):
    """Detectron2's own checkpointer calls it."""
    model, expected = eomt("v2"), load(eomt("v2"), files["bin_v2"])
    model.load_state_dict(torch.load(files["transformers_v2"], weights_only=True))
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_another_number_of_classes(files, classes, caplog):
    model = eomt("v2")
    other = tiny.transformers_model(False, num_labels=classes + 2).state_dict()
    safetensors.save_file(other, files["base"] + ".more.safetensors")
    fresh = model.sem_seg_head.class_head.weight.clone()
    with caplog.at_level(logging.WARNING):
        load(model, files["base"] + ".more.safetensors", strict=False)
    lines = [record.getMessage() for record in caplog.records if "class_head" in record.message]
    assert len(lines) == 1 and "stay at their initial values" in lines[0]
    assert torch.equal(model.sem_seg_head.class_head.weight, fresh)
    assert torch.equal(model.sem_seg_head.q.weight, other["query.weight"])
    assert model.criterion.empty_weight[-1] == pytest.approx(0.1)


def test_another_image_size(files, caplog):
    model = eomt("v2", **{"MODEL.VIT.IMAGE_SIZE": 96})
    with caplog.at_level(logging.INFO):
        load(model, files["transformers_v2"])
    assert "Position embedding resampled from 4 x 4 to 6 x 6" in caplog.text
    assert model.backbone.net.pos_embed.shape == (1, 36, tiny.WIDTH)


def test_another_patch_size(files):
    model = eomt("v2", **{"MODEL.VIT.PATCH_SIZE": 8})
    with pytest.raises(CheckpointError, match=r"set MODEL\.VIT\.PATCH_SIZE 16"):
        load(model, files["transformers_v2"])


def test_weights_of_the_other_encoder(files):
    with pytest.raises(CheckpointError, match="weights do not fit the model"):
        load(eomt("v3"), files["bin_v2"])


def test_differences_without_their_base(files):
    model = eomt("v3", **{"MODEL.EOMT.ENCODER_WEIGHTS": "missing.pth"})
    with pytest.raises(CheckpointError) as error:
        load(model, files["bin_v3"])
    text = str(error.value)
    assert "bin_v3.bin holds differences to the DINOv3 encoder of width 32" in text
    assert "missing.pth does not exist" in text and "MODEL.WEIGHTS" not in text
    assert text.count("MODEL.EOMT.ENCODER_WEIGHTS") == 1
    other = eomt("v3", **{"MODEL.EOMT.ENCODER_WEIGHTS": files["bin_v2"]})
    with pytest.raises(CheckpointError, match="the base is another one"):
        load(other, files["bin_v3"])
    with pytest.raises(CheckpointError, match="which is not given"):
        eomt("v3").load_state_dict(torch.load(files["bin_v3"], weights_only=True))


def test_the_base_is_timms_by_default(files):
    differences = torch.load(files["bin_v3"], weights_only=True)
    name = "network.encoder.backbone.patch_embed.cls_token"
    wanted = eomt("v3").base_weights({**differences, name: torch.zeros(1, 1, 384)})
    assert wanted.address == "timm://vit_small_patch16_dinov3_qkvb"
    assert eomt("v3").base_weights(torch.load(files["bin_v2"], weights_only=True)) is None


def test_other_pixel_values_are_said(files, caplog):
    model = eomt("v2", **{"MODEL.PIXEL_MEAN": [0.0, 0.0, 0.0]})
    with caplog.at_level(logging.WARNING):
        load(model, files["bin_v2"])
    expected = "MODEL.PIXEL_MEAN [123.675, 116.28, 103.53]; the config has [0.0, 0.0, 0.0]"
    assert expected in caplog.text and "PIXEL_STD" not in caplog.text


def test_encoder_alone(files, caplog):
    with caplog.at_level(logging.INFO):
        model = load(eomt("v3"), files["base"], strict=False)
    base = safetensors.load_file(files["base"])
    assert "backbone loaded whole" in caplog.text
    found = model.backbone.net.state_dict()
    assert torch.equal(found["reg_token"], base["embeddings.register_tokens"])
    # "model.layer.3" in transformers 5
    theirs = next(v for n, v in base.items() if n.endswith("layer.3.attention.q_proj.bias"))
    assert torch.equal(found["blocks.3.attn.q_bias"], theirs)
