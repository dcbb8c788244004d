"""An EoMT that is written as a model of transformers gives the same logits there."""

import json

import pytest
import torch
from detectron2.data import MetadataCatalog

from panoptic_ext.errors import ConfigError
from panoptic_ext.model_zoo.eomt_export import export_eomt
from tests.tiny.eomt import DINOV2, DINOV3, build
from tests.tiny.eomt_published import import_transformers
from tests.tiny.mask_former import NAME
from tests.tiny.model_inputs import fake_metadata

pytest.importorskip("timm", reason="EoMT's ViT is a timm model")
transformers = pytest.importorskip("transformers", reason="the models are read by transformers")
pytest.importorskip("safetensors", reason="the weights are written as safetensors")

PLAIN = "vit_tiny_patch16_224"
GIANT = "vit_giant_patch14_reg4_dinov2"
GATED_DINOV3 = "vit_small_plus_patch16_dinov3_qkvb"


@pytest.fixture(scope="module", autouse=True)
def metadata():
    fake_metadata(NAME)
    yield
    MetadataCatalog.remove(NAME)


def eomt(name=DINOV2, **changes):
    model = build(**{"MODEL.VIT.NAME": name, **changes}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def names(model):
    return [f"class {i}" for i in range(model.sem_seg_head.class_head.out_features - 1)]


def read(folder):
    """Their model and their image processor; nothing may be missing or left over."""
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, report = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval(), transformers.AutoImageProcessor.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (DINOV2, {}),
        (DINOV3, {}),
        (PLAIN, {}),
        (GIANT, {"MODEL.VIT.EMBED_DIM": 48}),
        (DINOV2, {"MODEL.EOMT.ANNEALING": "off"}),  # masks in evaluation, too
    ],
    ids=["DINOv2", "DINOv3", "plain", "giant", "masked"],
)
def test_same_logits(tmp_path, name, changes):
    import_transformers(name == DINOV3)
    model = eomt(name, **changes)
    packed = int(transformers.__version__.partition(".")[0]) < 5
    export_eomt(model, tmp_path, class_names=names(model), packed_swiglu=packed)
    theirs, _ = read(tmp_path)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found, expected = model.outputs(images), theirs(images)
    # Random masks are near 0 in places, where a rounding error masks another patch.
    close = {"rtol": 1e-5, "atol": 2e-5}
    torch.testing.assert_close(found.pred_logits, expected.class_queries_logits, **close)
    torch.testing.assert_close(found.dense_masks(), expected.masks_queries_logits, **close)


def test_labels_and_pixels(tmp_path):
    model = eomt(
        **{
            "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
            "MODEL.PIXEL_STD": [57.375, 57.12, 58.395],
        }
    )
    export_eomt(model, tmp_path, class_names=names(model), channels="BGR")
    theirs, processor = read(tmp_path)
    assert theirs.config.id2label[1] == "class 1"
    assert processor.image_mean == pytest.approx([0.485, 0.456, 0.406])
    assert processor.do_pad and not processor.do_split_image
    rgb = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    pixels = processor(rgb, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = theirs(pixels).class_queries_logits
        inputs = model.preprocess_image([{"image": rgb.flip(0).float()}])
        found = model.outputs(inputs.tensor).pred_logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


def test_size_of_images(tmp_path):
    import_transformers(dinov3=True)
    model = eomt(DINOV3)
    export_eomt(model, tmp_path, class_names=names(model), image_size=96)
    theirs, processor = read(tmp_path)
    assert theirs.config.image_size == 96 == processor.size["shortest_edge"]
    with pytest.raises(ConfigError, match=r"set MODEL\.VIT\.IMAGE_SIZE 96"):
        export_eomt(eomt(), tmp_path, class_names=names(model), image_size=96)


def test_what_transformers_has_no_model_for(tmp_path):
    model = eomt()
    with pytest.raises(ConfigError, match="1 class names for a model of"):
        export_eomt(model, tmp_path, class_names=["a"])
    gated = eomt(GATED_DINOV3)
    with pytest.raises(ConfigError, match="gated MLPs with SiLU"):
        export_eomt(gated, tmp_path, class_names=names(gated))
    assert list(tmp_path.iterdir()) == []
