"""The fusions of panoptic_ext.postprocessing as modules of the registry.

They have no parameters: the same weights can be evaluated with each of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

from detectron2.config import configurable
from torch import Tensor

from panoptic_ext.errors import ConfigError, check_known
from panoptic_ext.fusion.base import PANOPTIC_FUSION_REGISTRY, PanopticFusion
from panoptic_ext.fusion.hadamard import hadamard_fusion
from panoptic_ext.fusion.heuristic import (
    heuristic_fusion,
    heuristic_fusion_detectron2,
)
from panoptic_ext.fusion.segments import VOID_POLICIES
from panoptic_ext.fusion.upsnet import upsnet_fusion

__all__ = [
    "Detectron2Fusion",
    "HadamardFusion",
    "HeuristicFusion",
    "UPSNetFusion",
    "check_option",
]

Result = tuple[Tensor, list[dict[str, Any]]]

_SHARE = (lambda x: 0 <= x <= 1, "a number from 0 to 1; write 50% as 0.5")
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "score_threshold": _SHARE,
    "nms_threshold": _SHARE,
    "overlap_threshold": _SHARE,
    "stuff_area_threshold": (lambda x: x >= 0, "pixels, 0 or more; 0 keeps all stuff"),
    "instance_logit_scale": (
        lambda x: 0 < x < math.inf,
        "a finite number above 0; 1.0 is the paper's formula",
    ),
}


def check_option(name: str, value: float, key: str) -> None:
    """Check one option of the fusions here; `key` is what the config calls it.

    Raises:
        ConfigError: it is outside its range; a threshold of 50 would drop every instance.
    """
    fits, expected = _RANGES[name]
    if not fits(value):
        raise ConfigError(f"{key} is {value!r}; expected {expected}")


class _Fusion(PanopticFusion):
    """A function of panoptic_ext.postprocessing and its options."""

    function: Callable[..., Result]
    keys: ClassVar[Mapping[str, str]] = {}
    """Options whose key below MODEL.PANOPTIC_FUSION is not their own name in capitals."""

    def __init__(
        self, *, thing_ids: Collection[int], num_classes: int, void_policy: str, **options: float
    ) -> None:
        super().__init__(thing_ids=thing_ids, num_classes=num_classes)
        check_known("MODEL.PANOPTIC_FUSION.VOID_POLICY", void_policy, VOID_POLICIES)
        for name, value in options.items():
            key = self.keys.get(name, name.upper())
            check_option(name, value, f"MODEL.PANOPTIC_FUSION.{key}")
        self.options = {"void_policy": void_policy, **options}

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        keys = cfg.MODEL.PANOPTIC_FUSION
        return {
            **super().from_config(cfg),
            "score_threshold": keys.SCORE_THRESHOLD,
            "overlap_threshold": keys.OVERLAP_THRESHOLD,
            "stuff_area_threshold": keys.STUFF_AREA_THRESHOLD,
            "void_policy": keys.VOID_POLICY,
        }

    def forward(
        self,
        sem_seg: Tensor,
        *,
        boxes: Tensor,
        scores: Tensor,
        classes: Tensor,
        mask_logits: Tensor,
    ) -> Result:
        """See `PanopticFusion.forward`.

        Raises:
            ValueError: `sem_seg` has not one channel for each class, or an instance is no thing.
        """
        if len(sem_seg) != self.num_classes:
            raise ValueError(
                f"sem_seg has {len(sem_seg)} channels, but there are {self.num_classes} classes; "
                "fusion needs one channel for each thing and each stuff class"
            )
        return self.function(
            sem_seg,
            boxes=boxes,
            scores=scores,
            classes=classes,
            mask_logits=mask_logits,
            thing_ids=self.thing_ids,
            **self.options,
        )

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


@PANOPTIC_FUSION_REGISTRY.register_as("hadamard")
class HadamardFusion(_Fusion):
    """EfficientPS: see `hadamard_fusion`."""

    function = staticmethod(hadamard_fusion)

    @configurable
    def __init__(
        self,
        *,
        thing_ids: Collection[int],
        num_classes: int,
        score_threshold: float = 0.5,
        overlap_threshold: float = 0.5,
        stuff_area_threshold: float = 2048,
        instance_logit_scale: float = 1.0,
        void_policy: str = "void",
    ) -> None:
        """
        Args:
            thing_ids: unified ids of the things.
            num_classes: K.

        The others are options of `hadamard_fusion`.

        Raises:
            ConfigError: a thing id outside 0..K-1, an unknown `void_policy`, or a number outside
                its range.
        """
        super().__init__(
            thing_ids=thing_ids,
            num_classes=num_classes,
            score_threshold=score_threshold,
            overlap_threshold=overlap_threshold,
            stuff_area_threshold=stuff_area_threshold,
            instance_logit_scale=instance_logit_scale,
            void_policy=void_policy,
        )

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        scale = cfg.MODEL.PANOPTIC_FUSION.INSTANCE_LOGIT_SCALE
        return {**super().from_config(cfg), "instance_logit_scale": scale}


@PANOPTIC_FUSION_REGISTRY.register_as("heuristic")
class HeuristicFusion(_Fusion):
    """Instances by score over the semantic labels: see `heuristic_fusion`."""

    function = staticmethod(heuristic_fusion)

    @configurable
    def __init__(
        self,
        *,
        thing_ids: Collection[int],
        num_classes: int,
        score_threshold: float = 0.5,
        overlap_threshold: float = 0.5,
        stuff_area_threshold: float = 2048,
        void_policy: str = "void",
    ) -> None:
        """Arguments as those of HadamardFusion, for `heuristic_fusion`."""
        super().__init__(
            thing_ids=thing_ids,
            num_classes=num_classes,
            score_threshold=score_threshold,
            overlap_threshold=overlap_threshold,
            stuff_area_threshold=stuff_area_threshold,
            void_policy=void_policy,
        )


@PANOPTIC_FUSION_REGISTRY.register_as("heuristic_detectron2")
class Detectron2Fusion(HeuristicFusion):
    """The same by Detectron2's own functions: see `heuristic_fusion_detectron2`."""

    function = staticmethod(heuristic_fusion_detectron2)


@PANOPTIC_FUSION_REGISTRY.register_as("upsnet")
class UPSNetFusion(_Fusion):
    """UPSNet's parameter-free head: see `upsnet_fusion`."""

    function = staticmethod(upsnet_fusion)
    keys: ClassVar[Mapping[str, str]] = {
        name: f"UPSNET.{name.upper()}"
        for name in ("score_threshold", "nms_threshold", "overlap_threshold")
    }

    @configurable
    def __init__(
        self,
        *,
        thing_ids: Collection[int],
        num_classes: int,
        score_threshold: float = 0.6,
        nms_threshold: float = 0.5,
        overlap_threshold: float = 0.3,
        stuff_area_threshold: float = 2048,
        void_policy: str = "void",
    ) -> None:
        """Arguments as those of HadamardFusion, for `upsnet_fusion`."""
        super().__init__(
            thing_ids=thing_ids,
            num_classes=num_classes,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            overlap_threshold=overlap_threshold,
            stuff_area_threshold=stuff_area_threshold,
            void_policy=void_policy,
        )

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        keys = cfg.MODEL.PANOPTIC_FUSION.UPSNET
        return {
            **super().from_config(cfg),
            "score_threshold": keys.SCORE_THRESHOLD,
            "nms_threshold": keys.NMS_THRESHOLD,
            "overlap_threshold": keys.OVERLAP_THRESHOLD,
        }
