"""EfficientNets of timm: the paper preset, and norms that leave activations where they were."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from torch import nn

from panoptic_ext.config import add_panoptic_ext_config
from panoptic_ext.errors import ConfigError
from panoptic_ext.modeling.backbone import TimmBackbone

timm = pytest.importorskip("timm")
NAMES = [
    pytest.param(f"{prefix}efficientnet_b{i}", marks=[] if i == 0 else pytest.mark.slow)
    for prefix in ("", "tf_")
    for i in range(8)
]


def activations(net):
    """How many activations one forward pass calls: a converter can keep one and not call it."""
    called = []
    for module in net.modules():
        if isinstance(module, (nn.SiLU, nn.LeakyReLU, nn.ReLU)):
            module.register_forward_hook(lambda *_: called.append(1))
    with torch.no_grad():
        net.eval()(torch.randn(1, 3, 64, 64))
    return len(called)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("preset", ["", "paper"])
def test_b0_to_b7_have_the_four_strides(name, preset):
    with torch.device("meta"):
        backbone = TimmBackbone(name, preset=preset)
        whole = timm.create_model(name)
    shapes = backbone.output_shape()
    assert [s.stride for s in shapes.values()] == [4, 8, 16, 32]
    last = whole.num_features if preset else whole.feature_info[-1]["num_chs"]
    assert shapes["res5"].channels == last


def test_b5_of_the_paper():
    with torch.device("meta"):
        backbone = TimmBackbone("efficientnet_b5", preset="paper")
    assert [s.channels for s in backbone.output_shape().values()] == [40, 64, 176, 2048]


def test_the_paper_preset_has_no_squeeze_and_excitation_and_leaky_relu_only():
    torch.manual_seed(0)
    backbone = TimmBackbone("efficientnet_b0", preset="paper")
    names = [type(m).__name__ for m in backbone.modules()]
    assert "SqueezeExcite" not in names and "SiLU" not in names
    slopes = {m.negative_slope for m in backbone.modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.01}
    plain = TimmBackbone("efficientnet_b0")
    assert "SqueezeExcite" in [type(m).__name__ for m in plain.modules()]
    features = backbone(torch.randn(2, 3, 64, 96))
    shapes = {name: s.channels for name, s in backbone.output_shape().items()}
    assert {n: f.shape[1] for n, f in features.items()} == shapes
    sum((f * torch.randn_like(f)).sum() for f in features.values()).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("name", ["efficientnet_b0", "tf_efficientnet_b0"])
@pytest.mark.parametrize("norm", ["BN", "SyncBN", "FrozenBN"])
def test_norms_of_a_batch_keep_names_and_outputs(name, norm):
    torch.manual_seed(0)
    plain = TimmBackbone(name, out_features=["res2", "res3"], preset="paper").eval()
    converted = TimmBackbone(name, out_features=["res2", "res3"], preset="paper", norm=norm)
    weights = plain.state_dict()
    missing, unexpected = converted.load_state_dict(weights, strict=False)
    assert missing == [] and all(n.endswith("num_batches_tracked") for n in unexpected)
    assert activations(converted) == activations(plain) > 10
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found, expected = converted.eval()(x), plain(x)
    for feature, value in expected.items():
        torch.testing.assert_close(found[feature], value, rtol=1e-4, atol=1e-5)


def test_synchronized_and_frozen_norms_are_what_they_say():
    synchronized = TimmBackbone("efficientnet_b0", norm="SyncBN")
    assert any(isinstance(m, nn.SyncBatchNorm) for m in synchronized.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in synchronized.modules())
    frozen = TimmBackbone("efficientnet_b0", norm="FrozenBN").train()
    names = [n for n, _ in frozen.named_parameters()]
    assert not any(".bn" in n for n in names)
    before = {k: v.clone() for k, v in frozen.state_dict().items() if "running" in k}
    frozen(torch.randn(1, 3, 64, 64))
    assert before and all(torch.equal(v, frozen.state_dict()[k]) for k, v in before.items())


@pytest.mark.parametrize("preset", ["", "paper"])
def test_group_norm_keeps_activations_and_sees_one_image_only(preset):
    torch.manual_seed(0)
    plain = TimmBackbone("efficientnet_b0", preset=preset)
    net = TimmBackbone("efficientnet_b0", preset=preset, norm="GN").train()
    assert not any(isinstance(m, (nn.BatchNorm2d, nn.SyncBatchNorm)) for m in net.modules())
    assert activations(net) == activations(plain) > 20
    groups = {m.num_channels: m.num_groups for m in net.modules() if isinstance(m, nn.GroupNorm)}
    assert groups[32] == 32 and groups[24] == 8 and groups[144] == 16
    with torch.no_grad():
        x = torch.randn(2, 3, 64, 64)
        both, alone = net(x), net(x[:1])
    for name, feature in alone.items():
        torch.testing.assert_close(both[name][:1], feature, rtol=1e-3, atol=1e-4)


def test_a_plain_batch_norm_without_activation_is_converted_too():
    net = TimmBackbone("resnet10t", norm="GN")
    assert any(type(m) is nn.GroupNorm for m in net.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert net(torch.randn(1, 3, 64, 64))["res5"].shape == (1, 512, 2, 2)


def config(**keys):
    cfg = get_cfg()
    add_panoptic_ext_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.TIMM.NAME = "efficientnet_b0"
    for key, value in keys.items():
        cfg.MODEL.TIMM[key] = value
    return cfg


def test_keys_reach_the_backbone():
    backbone = build_backbone(config(PRESET="paper", NORM="GN"))
    assert backbone.output_shape()["res5"].channels == 1280
    assert any(isinstance(m, nn.GroupNorm) for m in backbone.modules())
    fine = build_backbone(config(PRESET="paper", OUT_FEATURES=["res2", "res3"]))
    with torch.no_grad():
        assert fine(torch.randn(1, 3, 64, 64))["res3"].shape == (1, 40, 8, 8)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"NORM": "syncbn"}, "unknown MODEL.TIMM.NORM 'syncbn'; did you mean 'SyncBN'"),
        ({"PRESET": "papers"}, "unknown MODEL.TIMM.PRESET 'papers'; did you mean 'paper'"),
        ({"PRESET": "paper", "PRETRAINED": True}, "set PRETRAINED False, or PRESET ''"),
        ({"PRESET": "paper", "NAME": "resnet10t"}, "is for EfficientNets, but 'resnet10t' is a"),
    ],
)
def test_wrong_keys_are_errors_that_say_how_to_mend(keys, message):
    with pytest.raises(ConfigError, match=message):
        build_backbone(config(**keys))


def test_weights_that_cannot_be_fetched_are_an_error_that_says_how_to_mend(monkeypatch):
    real = timm.create_model

    def unreachable(name, pretrained=False, **kwargs):
        if pretrained:
            raise OSError("We couldn't connect to the hub")
        return real(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(ConfigError, match=r"couldn't connect.*PRETRAINED.*set it to False"):
        TimmBackbone("efficientnet_b0", pretrained=True)


def test_the_trap_that_converters_of_torch_lose_activations_is_real():
    net = timm.create_model("efficientnet_b0", features_only=True)
    before = activations(net)
    net = timm.create_model("efficientnet_b0", features_only=True)
    assert activations(nn.SyncBatchNorm.convert_sync_batchnorm(net)) < before
