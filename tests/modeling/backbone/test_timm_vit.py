"""Which models of timm are plain ViTs; other names and keys are one error that says how to mend."""

import sys

import pytest
import torch

from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.backbone.timm_vit import create_plain_vit, is_plain_vit

timm = pytest.importorskip("timm")
DINOV2, DINOV3 = "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3_qkvb"


@pytest.mark.parametrize(
    "name",
    [
        "swin_tiny_patch4_window7_224",
        "hiera_tiny_224",
        "mvitv2_tiny",
        "resnet50",
        "convnext_tiny",
        "vit_base_r50_s16_224",
        "samvit_base_patch16",
        "naflexvit_base_patch16_gap",
        "vit_relpos_base_patch16_224",
        "cait_s24_224",
    ],
)
def test_other_models_are_refused_with_names_to_take(name):
    with pytest.raises(ConfigError) as error:
        create_plain_vit(name)
    message = str(error.value)
    assert f"MODEL.VIT.NAME {name!r} is no plain ViT" in message and "\n" not in message
    assert "'vit_base_patch14_reg4_dinov2'" in message and "build_timm_backbone" in message


@pytest.mark.slow
def test_plain_vits_of_timm_have_the_two_classes():
    """The list is by timm's modules, so that nothing has to be built to know it; a fifth of it."""
    classes = {"VisionTransformer", "VisionTransformerDistilled", "Eva"}
    names = [name for name in timm.list_models() if is_plain_vit(timm, name)]
    assert len(names) > 200
    for name in names[::5]:
        # Every block of Sapiens2 has a number of heads of its own.
        few = {} if "sapiens2" in name else {"depth": 1}
        with torch.device("meta"):
            net = create_plain_vit(name, **few)
        assert type(net).__name__ in classes, name
        assert type(net.patch_embed).__name__ in ("PatchEmbed", "HybridEmbed"), name


def test_a_name_with_the_tag_of_its_weights():
    net = create_plain_vit(f"{DINOV2}.lvd142m", depth=1, embed_dim=24, num_heads=2)
    assert net.num_prefix_tokens == 5 and net.num_classes == 0 and net.attn_pool is None


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("vit_base_patch14_dinov2_reg4", "'vit_base_patch14_reg4_dinov2'"),
        ("vit_large_dinov3", "'vit_large_patch16_dinov3'"),
        ("ViT_Small_Patch16_224", "'vit_small_patch16_224'"),
    ],
)
def test_an_unknown_name_is_one_line_with_near_names(name, near):
    with pytest.raises(ConfigError, match=r"unknown MODEL\.VIT\.NAME") as error:
        create_plain_vit(name)
    assert near in str(error.value) and "\n" not in str(error.value)


def test_an_old_timm_is_one_line_with_the_version_to_install(monkeypatch):
    monkeypatch.setattr(timm, "__version__", "1.0.9")
    with pytest.raises(ConfigError, match=r"found 1\.0\.9; pip install 'timm>=1\.0\.22'"):
        create_plain_vit(DINOV2)


def test_missing_timm_is_one_line_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"the ViT '.*pip install 'panoptic_ext\[timm\]'"):
        create_plain_vit(DINOV2)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            DINOV2,
            {"embed_dim": 30, "num_heads": 4},
            r"divisible by num_heads; check .*EMBED_DIM 30",
        ),
        (
            DINOV3,
            {"embed_dim": 32, "num_heads": 3},
            "32 channels cannot have MODEL.VIT.NUM_HEADS 3",
        ),
        (DINOV3, {"embed_dim": 36, "num_heads": 6}, "a multiple of 4 times as many"),
        (DINOV2, {"img_size": 640}, "IMAGE_SIZE 640 is no multiple of .*, 14 pixels; take 630"),
        (DINOV2, {"img_size": 8, "patch_size": 16}, "IMAGE_SIZE 8 .* take 16"),
        (DINOV2, {"depth": -1}, "MODEL.VIT.DEPTH is -1; expected 1 or more, or 0"),
        (DINOV2, {"drop_path_rate": 1.0}, "DROP_PATH_RATE is 1.0; expected 0 to less than 1"),
        (DINOV2, {"rope_rescale_coords": 2.0}, r"has no rotary .*set it to 0"),
        ("eva_giant_patch14_224", {"rope_rescale_coords": 2.0}, "has no rotary position"),
        (DINOV3, {"rope_rescale_coords": 0.5}, "ROPE_RESCALE is 0.5; expected 1 or more"),
    ],
)
def test_wrong_keys_are_errors_that_say_how_to_mend(name, changes, message):
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        create_plain_vit(name, **changes)


def test_weights_that_cannot_be_fetched(monkeypatch):
    def unreachable(name, pretrained=False, **kwargs):
        raise OSError("We couldn't connect to the hub.\nCheck it.")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(ConfigError, match=r"couldn't connect to the hub; .*set it to False"):
        create_plain_vit(DINOV2, pretrained=True)
