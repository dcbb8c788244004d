"""Name sets of published EoMT weights: to our names and back, and the errors about them."""

import pytest
import torch

from panoptic_ext.errors import CheckpointError
from panoptic_ext.modeling.backbone.vit_names import encoder_to_timm
from panoptic_ext.modeling.eomt.published_weights import (
    BACKBONE,
    base_of_differences,
    from_published,
    is_eomt,
    published_form,
    to_bin,
    to_transformers,
)
from tests.tiny import eomt_published as tiny

timm = pytest.importorskip("timm", reason="names are compared with timm's models")
transformers = pytest.importorskip("transformers", reason="the weights are of transformers' models")

PIXELS = {
    "pixel_mean": torch.tensor([0.485, 0.456, 0.406]),
    "pixel_std": torch.tensor([0.229, 0.224, 0.225]),
}


@pytest.fixture(scope="module")
def base():
    return tiny.encoder_of_dinov3().state_dict()


@pytest.fixture(scope="module")
def published(base):
    theirs = tiny.Lazy(lambda version: tiny.transformers_model(version == "v3").state_dict())
    return tiny.Lazy(lambda form: tiny.weights_of(form, theirs[form[-2:]], base))


def timm_net(name, **changes):
    sizes = {"embed_dim": tiny.WIDTH, "depth": tiny.DEPTH, "num_heads": tiny.HEADS, **changes}
    return timm.create_model(
        name, img_size=tiny.IMAGE_SIZE, patch_size=16, num_classes=0, **sizes
    ).eval()


def equal(found, expected, tolerance=0.0):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance, msg=name)


def back(form, ours, base):
    if form.startswith("transformers"):
        return to_transformers(ours, queried_blocks=tiny.BLOCKS)
    base = base if form == "bin_v3" else None
    return to_bin(ours, queried_blocks=tiny.BLOCKS, base=base, **PIXELS)


@pytest.mark.parametrize("form", tiny.FORMS)
def test_round_trip(published, base, form):
    theirs = published[form]
    assert is_eomt(theirs)
    ours = from_published(theirs, base if form == "bin_v3" else None)
    equal(back(form, ours, base), theirs, 1e-6 if form == "bin_v3" else 0.0)


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_bin_and_transformers_forms_give_the_same(published, base, version):
    from_bin = from_published(published[f"bin_{version}"], base)
    from_theirs = from_published(published[f"transformers_{version}"])
    equal(from_bin, from_theirs, 1e-6 if version == "v3" else 0.0)


def test_forms(published):
    assert [tuple(published_form(published[form])) for form in tiny.FORMS] == [
        (False, False), (False, True), (True, False), (True, True),
    ]  # fmt: skip
    assert published_form({"backbone.net.cls_token": torch.zeros(1)}) is None
    with pytest.raises(CheckpointError, match=r"expected network\.q\.weight"):
        from_published({"query.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("dinov3", "swiglu", "name"),
    [
        (False, False, "vit_small_patch14_reg4_dinov2"),
        (False, True, "vit_giant_patch14_reg4_dinov2"),
        (True, False, "vit_small_patch16_dinov3_qkvb"),
        (True, True, "vit_small_plus_patch16_dinov3_qkvb"),
    ],
)
def test_encoder_gives_the_same_features_in_timm(dinov3, swiglu, name):
    # Width 48: timm and transformers round the giant's hidden width to the same number.
    width = 48 if swiglu and not dinov3 else tiny.WIDTH
    act = {"hidden_act": "silu"} if dinov3 and swiglu else {}
    model = tiny.transformers_model(dinov3, swiglu=swiglu, hidden_size=width, **act)
    changes = {"mlp_ratio": 4 * tiny.WIDTH / width} if dinov3 and swiglu else {}
    net = timm_net(name, embed_dim=width, **changes)
    ours = from_published(model.state_dict())
    encoder = {n.removeprefix(BACKBONE): v for n, v in ours.items() if n.startswith(BACKBONE)}
    net.load_state_dict(encoder)
    images = torch.randn(1, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
    with torch.no_grad():
        torch.testing.assert_close(
            net.forward_features(images), tiny.features(model, images), rtol=1e-4, atol=1e-5
        )
    theirs = model.state_dict()
    packed = "layers.0.mlp.weights_in.weight" in theirs  # transformers 4
    equal(to_transformers(ours, queried_blocks=tiny.BLOCKS, packed_swiglu=packed), theirs)


def test_giant_of_2025_is_packed_with_the_gate_first():
    state = tiny.transformers_model(False, swiglu=True, hidden_size=48).state_dict()
    old = {}
    for name, value in state.items():
        if ".gate_proj." in name:
            up = state[name.replace("gate_proj", "up_proj")]
            old[name.replace("gate_proj", "weights_in")] = torch.cat([value, up])
        elif ".up_proj." not in name:
            old[name.replace("down_proj", "weights_out")] = value
    ours = from_published(old)
    equal(ours, from_published(state))
    equal(to_transformers(ours, queried_blocks=tiny.BLOCKS, packed_swiglu=True), old)


@pytest.mark.parametrize("form", ["timm", "timm without biases", "transformers 4", "ours"])
def test_forms_of_the_base(published, base, form):
    expected = from_published(published["bin_v3"], base)
    encoder = encoder_to_timm(base)
    if form == "timm without biases":  # such as timm's vit_large_patch16_dinov3
        biases = {n for n in encoder if n.endswith(("q_bias", "v_bias"))}
        zero = {n: torch.zeros_like(v) if n in biases else v for n, v in encoder.items()}
        expected = from_published(published["bin_v3"], zero)
        encoder = {n: v for n, v in encoder.items() if n not in biases}
    elif form == "transformers 4":
        encoder = {n.removeprefix("model."): v for n, v in base.items()}
    elif form == "ours":
        encoder = {BACKBONE + n: v for n, v in encoder.items()}
    equal(from_published(published["bin_v3"], encoder), expected)


def test_differences_need_their_base(published, base):
    differences = published["bin_v3"]
    with pytest.raises(CheckpointError) as error:
        from_published(differences)
    assert "MODEL.EOMT.ENCODER_WEIGHTS" in str(error.value)
    assert "the DINOv3 encoder of width 32" in str(error.value)
    wide = {
        name: torch.zeros(1, 1, 1024) if name.endswith("cls_token") else value
        for name, value in differences.items()
    }
    with pytest.raises(CheckpointError, match="timm://vit_large_patch16_dinov3_qkvb"):
        from_published(wide)
    assert base_of_differences(wide) == "vit_large_patch16_dinov3_qkvb"
    none = {name: value for name, value in wide.items() if "cls_token" not in name}
    with pytest.raises(CheckpointError, match=r"patch_embed\.cls_token is missing"):
        base_of_differences(none)
    other = {name: value for name, value in base.items() if "layer.3." not in name}
    with pytest.raises(CheckpointError, match=r"another one: blocks\.3\..* is missing"):
        from_published(differences, other)
    with pytest.raises(CheckpointError, match=r"is \(1, 1, 8\), expected \(1, 1, 32\)"):
        from_published(differences, {**base, "embeddings.cls_token": torch.zeros(1, 1, 8)})
    with pytest.raises(CheckpointError, match=r"no encoder alone.*MODEL\.EOMT\.ENCODER_WEIGHTS"):
        from_published(differences, published["transformers_v2"])


def test_incomplete_and_unknown_tensors(published):
    state = dict(published["transformers_v2"])
    del state["layers.1.attention.k_proj.bias"]
    with pytest.raises(CheckpointError, match=r"layers\.1\.attention\.k_proj\.bias is missing"):
        from_published(state)
    with pytest.raises(CheckpointError, match=r"'layers\.0\.adapter\.weight' is none of a plain"):
        from_published({**published["transformers_v2"], "layers.0.adapter.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"k_proj\.bias is not 0"):
        from_published(
            {**published["transformers_v3"], "layers.0.attention.k_proj.bias": torch.ones(1)}
        )


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_another_vit_in_transformers_form(name):
    """A ViT without layer scale, registers or biases is filled up, and gives the same."""
    torch.manual_seed(0)
    net = timm_net(name)
    dinov3 = "dinov3" in name
    ours = from_published(tiny.transformers_model(dinov3).state_dict())
    head = {n: v for n, v in ours.items() if not n.startswith(BACKBONE)}
    mine = {BACKBONE + n: v for n, v in net.state_dict().items()}
    theirs = to_transformers(mine | head, queried_blocks=tiny.BLOCKS)
    registers = net.num_prefix_tokens - 1
    model = tiny.transformers_model(dinov3, num_register_tokens=registers)
    model.load_state_dict(theirs)
    images = torch.randn(1, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
    with torch.no_grad():
        torch.testing.assert_close(
            tiny.features(model, images), net.forward_features(images), rtol=1e-4, atol=1e-5
        )


SIZES = {  # width, blocks, heads, blocks with queries, millions of parameters
    "small": (384, 12, 6, 3, {"dinov2": 24.0, "dinov3": 23.4}),
    "base": (768, 12, 12, 3, {"dinov2": 93.7, "dinov3": 92.4}),
    "large": (1024, 24, 16, 4, {"dinov2": 316.7, "dinov3": 315.0}),
    "giant": (1536, 40, 24, 5, {"dinov2": 1163.6}),
}


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes_have_timms_names_and_shapes(size):
    width, depth, heads, blocks, kinds = SIZES[size]
    for kind, millions in kinds.items():
        sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
        dinov3, giant = kind == "dinov3", size == "giant"
        if dinov3 and "transformers_v3" not in tiny.available_forms():
            continue  # transformers 4
        mlp = {"intermediate_size": 4 * width} if dinov3 else {"use_swiglu_ffn": giant}
        config, network = (
            (transformers.EomtDinov3Config, transformers.EomtDinov3ForUniversalSegmentation)
            if dinov3
            else (transformers.EomtConfig, transformers.EomtForUniversalSegmentation)
        )
        name = f"patch16_{kind}_qkvb" if dinov3 else f"patch14_reg4_{kind}"
        with torch.device("meta"):
            theirs = network(config(num_blocks=blocks, num_labels=133, **sizes, **mlp))
            vit = f"vit_{size}_{name}"
            net = timm.create_model(vit, img_size=640, patch_size=16, num_classes=0)
        ours = from_published(theirs.state_dict())
        shapes = {n.removeprefix(BACKBONE): v.shape for n, v in ours.items() if BACKBONE in n}
        assert shapes == {n: v.shape for n, v in net.state_dict().items()}
        number = sum(value.numel() for value in ours.values()) / 1e6
        assert number == pytest.approx(millions, abs=0.05)


def test_vits_without_a_place_in_transformers_form():
    state = {"blocks.0.attn.q_norm.weight": 0, "pos_embed": 0, "cls_token": 0}
    shapes = {"blocks.0.attn.q_norm.weight": (4,), "pos_embed": (1, 4, 8), "cls_token": (1, 1, 8)}
    vit = {BACKBONE + name: torch.zeros(shapes[name]) for name in state}
    with pytest.raises(CheckpointError, match="no norms of query and key"):
        to_transformers(vit, queried_blocks=1)
    del vit[BACKBONE + "cls_token"]
    with pytest.raises(CheckpointError, match="no class token"):
        to_transformers(vit, queried_blocks=1)
