"""Any timm (PyTorch Image Models) model with feature maps as a backbone, by its name."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

from panoptic_ext.errors import ConfigError, check_known, unknown
from panoptic_ext.modeling.backbone.timm_layers import timm_layers, timm_stages
from panoptic_ext.modeling.backbone.timm_norm import convert_norms
from panoptic_ext.optional_packages import import_optional

__all__ = ["TIMM_ERRORS", "TimmBackbone", "build_timm_backbone", "import_timm"]

_PRESETS = ("", "paper")

# The errors that timm raises for models without feature maps and for weights that are missing.
TIMM_ERRORS = (RuntimeError, AttributeError, AssertionError, TypeError, ValueError, OSError)


class TimmBackbone(Backbone):
    """Features of a timm model, named by stride: `res2` is stride 4, `res5` stride 32.

    In the state dict the model's own names follow `net.`; with the preset "paper" those of the last
    convolution follow `head.`.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        out_features: list[str] | None = None,
        out_indices: list[int] | None = None,
        norm: str = "",
        preset: str = "",
    ) -> None:
        """Args:
        name: of a timm model.
        pretrained: whether to download timm's weights.
        out_features: names of the features to return; None or empty for those of `out_indices`,
            or, without these, all from stride 4 on.
        out_indices: indices of the model's feature maps; None or empty to derive them from
            `out_features`.
        norm: the norm that replaces batch norm; see `convert_norms`.
        preset: "" for timm's model as it is; "paper" for EfficientPS' EfficientNet: no squeeze and
            excitation, leaky ReLU of slope 0.01, and the last feature map is that of the
            convolution in front of the classifier (2048 channels in B5).

        Raises:
            ConfigError: timm is missing or has no such model; the model has no feature maps, or not
                the requested ones; its weights are missing; the norm or the preset is unknown or
                does not fit the model.
        """
        super().__init__()
        self.timm_name = name
        timm = import_timm(name)
        strides, any_size = _strides_and_size_arguments(timm, name)
        wanted = _index_of_features(name, strides, out_features or [], out_indices or [])
        arguments = {"pretrained": pretrained, "out_indices": list(wanted.values()), **any_size}
        if preset:
            head, head_channels = _head_of_preset(timm, name, preset, pretrained)
            arguments["act_layer"] = "leaky_relu"
        self.net = _create(timm, name, **arguments)
        self.channels_last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
        self._out_features = list(wanted)
        channels, reductions = self.net.feature_info.channels(), self.net.feature_info.reduction()
        self.head: nn.Module = nn.Identity()
        if preset:
            _remove_squeeze_and_excitation(self.net)
            if max(wanted.values()) == len(strides) - 1:
                self.head, channels[-1] = head, head_channels
        self.net, self.head = convert_norms(self.net, norm), convert_norms(self.head, norm)
        self._out_feature_channels = dict(zip(wanted, channels, strict=True))
        self._out_feature_strides = dict(zip(wanted, reductions, strict=True))

    @property
    def size_divisibility(self) -> int:
        """The coarsest stride."""
        return max(self._out_feature_strides.values())

    @property
    def num_layers(self) -> int:
        """Blocks of all stages; see `backbone_layers`."""
        return self._layers[1]

    def layer_of(self, parameter_name: str) -> int:
        """The layer of a parameter; that of the preset's last convolution comes behind all."""
        return self._layers[0].get(parameter_name.removeprefix("net."), self.num_layers)

    def parameter_stages(self) -> dict[str, int]:
        """The stage of each parameter by its name: stage i ends at the features of stride 2^(i+1).

        What comes before the first features is stage 0; see `stages_of_names`.
        """
        names = self.net.feature_info.info
        ends = [(end["module"], end["reduction"].bit_length() - 2) for end in names]
        stages = timm_stages(self.net, ends)
        last = max(stages.values(), default=0)
        return {n: stages.get(n.removeprefix("net."), last) for n, _ in self.named_parameters()}

    @cached_property
    def _layers(self) -> tuple[dict[str, int], int]:
        return timm_layers(self.timm_name, [name for name, _ in self.net.named_parameters()])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, h, w) -> features by name, (B, C, h / stride, w / stride)."""
        maps = self.net(x)
        maps[-1] = self.head(maps[-1])
        if self.channels_last:
            maps = [m.permute(0, 3, 1, 2).contiguous() for m in maps]
        return dict(zip(self._out_features, maps, strict=True))


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: Any, input_shape: ShapeSpec) -> TimmBackbone:
    """The timm model that MODEL.TIMM names."""
    keys = cfg.MODEL.TIMM
    freezes = cfg.MODEL.BACKBONE.FREEZE_NORMS and keys.NORM in ("", "BN", "SyncBN")
    if not keys.NAME:
        raise ConfigError(
            "MODEL.BACKBONE.NAME is build_timm_backbone, but MODEL.TIMM.NAME is empty; give a timm "
            "model, such as 'resnet50' or 'convnext_tiny'"
        )
    return TimmBackbone(
        keys.NAME,
        pretrained=keys.PRETRAINED,
        out_features=list(keys.OUT_FEATURES),
        out_indices=list(keys.OUT_INDICES),
        norm="FrozenBN" if freezes else keys.NORM,
        preset=keys.PRESET,
    )


def import_timm(name: str) -> ModuleType:
    """The package timm, which has a model of this name.

    Raises:
        ConfigError: timm is not installed, or has no such model.
    """
    timm = import_optional("timm", "timm", f"timm's model {name!r}")
    if not timm.is_model(name):
        what, mend = f"model of timm {timm.__version__}", "timm.list_models() lists them"
        raise ConfigError(unknown(what, name, timm.list_models(), mend=mend, limit=0))
    return timm


def _create(timm: ModuleType, name: str, **arguments: Any) -> Any:
    pretrained = arguments.get("pretrained", False)
    try:
        return timm.create_model(name, features_only=True, **arguments)
    except TIMM_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = (
            "MODEL.TIMM.PRETRAINED needs weights that exist and a network; set it to False and "
            "give MODEL.WEIGHTS instead"
            if pretrained
            else "take a model with feature maps, such as a ResNet, ConvNeXt or Swin"
        )
        raise ConfigError(f"timm cannot make {name!r} a backbone: {reason}; {hint}") from error


def _head_of_preset(
    timm: ModuleType, name: str, preset: str, pretrained: bool
) -> tuple[nn.Module, int]:
    """The convolution and norm behind the last feature map, and their number of channels."""
    # timm's `features_only` leaves them out: they are taken from the whole model, which is built
    # without memory for its weights.
    check_known("MODEL.TIMM.PRESET", preset, _PRESETS)
    if pretrained:
        raise ConfigError(
            "MODEL.TIMM.PRESET 'paper' and PRETRAINED True: published weights are those of models "
            "with squeeze and excitation and SiLU; set PRETRAINED False, or PRESET ''"
        )
    arguments = {"act_layer": "leaky_relu"} if "efficientnet" in name else {}
    with torch.device("meta"):
        whole = timm.create_model(name, **arguments)
    if not (arguments and hasattr(whole, "conv_head") and hasattr(whole, "bn2")):
        raise ConfigError(
            f"MODEL.TIMM.PRESET 'paper' is for EfficientNets, but {name!r} is a "
            f"{type(whole).__name__}; set it to ''"
        )
    head = nn.Sequential(whole.conv_head, whole.bn2).to_empty(device=torch.empty(0).device)
    whole.bn2.reset_parameters()
    nn.init.kaiming_normal_(whole.conv_head.weight, mode="fan_out")
    return head, whole.num_features


def _remove_squeeze_and_excitation(net: nn.Module) -> None:
    for module in list(net.modules()):
        if isinstance(getattr(module, "se", None), nn.Module):
            module.se = nn.Identity()


def _strides_and_size_arguments(timm: ModuleType, name: str) -> tuple[list[int], dict[str, bool]]:
    """The stride of each feature map, and the arguments that make the model accept any size."""
    with torch.device("meta"):  # no memory for weights
        for any_size in ({"strict_img_size": False}, {"dynamic_img_size": True}):
            # Only families of models with a fixed image size have one of these arguments. Other
            # errors occur again in the plain call below, which reports them.
            with suppress(*TIMM_ERRORS):
                net = timm.create_model(name, features_only=True, **any_size)
                return list(net.feature_info.reduction()), any_size
        return list(_create(timm, name).feature_info.reduction()), {}


def _index_of_features(
    name: str, strides: list[int], out_features: list[str], out_indices: list[int]
) -> dict[str, int]:
    """Name -> index of each feature map to return, fine to coarse."""
    for index in out_indices:
        if not 0 <= index < len(strides):
            raise ConfigError(
                f"MODEL.TIMM.OUT_INDICES has {index}, but {name!r} has feature maps 0 to "
                f"{len(strides) - 1}, at strides {strides}"
            )
    by_name: dict[str, int] = {}
    for index in sorted(out_indices) or range(len(strides)):
        # Only powers of 2 have a name: res2 is stride 4.
        if strides[index] & (strides[index] - 1) == 0:
            # Of several maps with one stride, the last is used: it is the deepest.
            by_name[f"res{strides[index].bit_length() - 1}"] = index
    wanted = out_features or [n for n in by_name if out_indices or strides[by_name[n]] >= 4]
    for feature in wanted:
        if feature not in by_name:
            what, why = "feature in MODEL.TIMM.OUT_FEATURES", f"{name!r} gives strides {strides}"
            raise ConfigError(unknown(what, feature, by_name, mend=why))
    return {feature: by_name[feature] for feature in sorted(wanted, key=by_name.__getitem__)}
